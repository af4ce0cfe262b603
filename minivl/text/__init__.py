"""Text: captions to token ids and back, and which pieces form a word (`minivl.text.tokenizer`)."""

from __future__ import annotations

from .published import read_tokenizer
from .tokenizer import Tokenizer, Word

__all__ = ["Tokenizer", "Word", "read_tokenizer"]
