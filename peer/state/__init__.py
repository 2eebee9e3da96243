"""The committed state of a run: what it is, where it stands, how it is saved and passed on."""
