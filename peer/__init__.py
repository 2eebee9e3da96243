"""The daemon a volunteer runs: train locally, average in rounds, serve the committed state."""
