"""Questions and the files they come from."""
