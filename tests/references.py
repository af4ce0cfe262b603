"""Reference models of transformers, tiny and random, with what converters need of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from random_models import randomise
from safetensors.torch import load_file
from torch import Tensor, nn

import minivl

MODES = ("memory", "published")


def states(model: nn.Module, mode: str) -> dict[str, Tensor]:
    """Tensors of a transformers model under the names it holds them by, or under those it is published with."""
    if mode == "memory":
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def description(model: nn.Module) -> dict[str, Any]:
    """Its config.json."""
    return json.loads(model.config.to_json_string(use_diff=False))


def random_reference(kind: Any, config: Any, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """A model of transformers that computes its attention openly, every parameter random, in eval mode."""
    model = kind._from_config(config, attn_implementation="eager")
    randomise(model, seed, scale)
    return model


def refused(state: dict[str, Tensor], **arguments: Any) -> str:
    """The one line with which a state dict is refused."""
    try:
        minivl.from_state_dict(state, **arguments)
    except minivl.InputError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("these tensors should have been refused")


def strictly(state: dict[str, Tensor], name: str, spare: str, **arguments: Any) -> None:
    """One tensor dropped, added, transposed, of another type: each has its own message, and names it.

    Args:
        state: converts as it is.
        name: of a weight in it that is not square.
        spare: a name that no rule knows.
    """
    minivl.from_state_dict(state, **arguments)
    without = {key: value for key, value in state.items() if key != name}
    message = refused(without, **arguments)
    assert "1 missing" in message and name in message, message
    message = refused({**state, spare: torch.zeros(3)}, **arguments)
    assert "1 unexpected" in message and spare in message, message
    message = refused({**state, name: state[name].transpose(0, 1).contiguous()}, **arguments)
    assert "of another shape" in message and name in message and "missing" not in message, message
    message = refused({**state, name: state[name].to(torch.int32)}, **arguments)
    assert "of another type" in message and name in message, message
    message = refused({**state, name: state[name].double()}, **arguments)
    assert "of another type" in message and name in message and "float64" in message, message
