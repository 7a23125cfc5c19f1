"""Files that survive a kill, and processes that share work."""
