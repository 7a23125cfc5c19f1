"""Find a gate on development questions; nothing here sees a benchmark."""
