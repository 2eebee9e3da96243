"""What a person types: one program with sub-commands."""
