"""Matrices of words that are the word table or not, and special tokens of a description."""

from __future__ import annotations

import pytest
import torch

from minivl.convert import hf_text
from minivl.errors import InputError


def test_tied() -> None:
    table = torch.randn(5, 3)
    assert hf_text.tied({"a": table}, "a", "b") and hf_text.tied({"b": table}, "a", "b")
    assert hf_text.tied({"a": table, "b": table.clone()}, "a", "b")
    assert hf_text.tied({"a": table, "b": table + 1}, "a", "b") is None
    assert hf_text.tied({"a": table, "b": table.T}, "a", "b") is None


def test_rows() -> None:
    state = {"odd": torch.zeros(3, 5), "flat": torch.zeros(3), "table": torch.zeros(5, 3), "next": torch.zeros(7, 3)}
    assert hf_text.rows(state, 3, "absent", "odd", "flat", "table", "next") == 5
    assert hf_text.rows(state, 3, "odd") is None and hf_text.rows(state, None, "table") is None


def test_token_of_the_first_config_that_has_it() -> None:
    outer, inner = {"eos": None, "pad": 0}, {"eos": [4], "pad": 9, "bos": [1, 2]}
    assert hf_text.token("eos", outer, inner, default=7) == 4
    assert hf_text.token("pad", outer, inner, default=7) == 0
    assert hf_text.token("start", outer, inner, default=7) == 7
    with pytest.raises(InputError, match=r"bos=\[1, 2\]"):
        hf_text.token("bos", outer, inner, default=7)
    with pytest.raises(InputError, match="bos=True"):
        hf_text.token("bos", {"bos": True}, default=7)
