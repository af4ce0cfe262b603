"""What the captioners of Hugging Face transformers have in common: the matrix of words, and special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


def tied(state: Mapping[str, Tensor], words: str, head: str) -> bool | None:
    """True where the matrix of words, `head`, is the word table `words`: an equal copy of it or not there at all; None
    where tensors cannot tell, because a copy that differs is one of its own or a damaged one."""
    if words not in state or head not in state or torch.equal(state[words], state[head]):
        return True
    return None


def rows(state: Mapping[str, Tensor], width: int | None, *names: str) -> int | None:
    """Rows of the first of these tables that is so wide: one of an odd shape tells nothing."""
    tables = (state[name] for name in names if name in state)
    return next((table.shape[0] for table in tables if table.ndim == 2 and table.shape[1] == width), None)


def token(key: str, *configs: Mapping[str, Any], default: int) -> int:
    """The special token of that key in the first config that has it.

    Raises:
        InputError: it is several tokens, or none at all.
    """
    value = next((config[key] for config in configs if config.get(key) is not None), default)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"config: {key}={value!r} is not supported, one whole number is")
    return value


def dotted(part: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an inner config as those of the outer one."""
    return {f"{part}.{field}": value for field, value in fields.items()}
