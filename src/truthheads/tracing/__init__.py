"""Which heads look at the evidence, in text and in images."""
