"""Does the context support an answer? Detectors fitted on heads, and what they say of rows."""
