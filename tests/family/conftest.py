"""Fixtures of the family's tests."""

import pytest
from transformers import PreTrainedTokenizerFast

from family.tiny_smollm2 import tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, with SmolLM2's special tokens."""
    return tiny_tokenizer()
