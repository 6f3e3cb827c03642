"""What is used of transformers' tokenizers."""

from __future__ import annotations

# The fast form of a tokenizer that is written in Python, whose tokens are then read as those of others.
from transformers.convert_slow_tokenizer import convert_slow_tokenizer

__all__ = ["convert_slow_tokenizer"]
