"""The embedded family: question and scene generators, and the small models trained on them."""
