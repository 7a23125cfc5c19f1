"""What one command writes and another reads: each artefact with its save and load."""
