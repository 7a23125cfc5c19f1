"""One file a benchmark: read it, phrase the prompt, parse the answer, measure. No model in here."""
