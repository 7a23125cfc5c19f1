"""Generated questions and scenes."""
