"""Everything that touches a transformers model."""
