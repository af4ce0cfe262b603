"""Optimiser groups, the learning-rate schedule, and a moving average of weights."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant", "step")
# of a ViT: what comes before its blocks, for layer-wise rates
FIRST = re.compile(r"(?:patch_embed|norm_pre)\.|(?:cls|dist|reg)_token$|pos_embed$")
BLOCK = re.compile(r"blocks\.(\d+)\.")


def decay_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of the trainable parameters for an optimiser: matrices of linear and convolution layers decay,
    everything else (biases, norms, embeddings, position tables, [class] and register tokens) does not.

    Args:
        model: with `layer_decay` a ViT.
        weight_decay: of the matrices.
        layer_decay: factor on the learning rate per layer, counted from the head down (Clark et al. 2020; Bao et al.
            2022, BEiT): block i of n learns at layer_decay^(n - i), what lies before block 0 at
            layer_decay^(n + 1), the last norm and the head at 1.

    Returns:
        Groups, each with "params", "names", "weight_decay" and "scale" (of its learning rate).
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    depth = max((int(match[1]) + 1 for name, _ in model.named_parameters() if (match := BLOCK.match(name))), default=0)
    chosen: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) in matrices and id(parameter) not in tables
        scale = layer_decay ** _layers_above(name, depth)
        group = chosen.setdefault((decays, scale), {"params": [], "names": [], "scale": scale,
                                                    "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(chosen.values(), key=lambda group: (not group["weight_decay"], group["scale"]))


def _layers_above(name: str, depth: int) -> int:
    if match := BLOCK.match(name):
        return depth - int(match[1])
    return depth + 1 if FIRST.match(name) else 0


def make_optimizer(name: str, groups: list[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """The optimiser of that name over groups of `decay_groups`.

    Args:
        name: "adamw" (Loshchilov & Hutter 2019; betas 0.9 and 0.98) or "sgd".
        groups: see `decay_groups`.
        momentum: of SGD; unused by AdamW.

    Raises:
        InputError: an unknown name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)
    raise InputError(f"optimizer={name!r}: give one of {', '.join(OPTIMIZERS)}")


def schedule(name: str, step: int, total: int, warmup: int, *, factor: float = 0.1, period: int = 1) -> float:
    """Factor on the learning rate at `step` (0-based); each schedule begins with a linear rise to 1.

    Args:
        name: "cosine": a half cosine to 0 at `total` (Loshchilov & Hutter 2017); "constant"; or "step": times
            `factor` after every `period` steps (counted from the first, the warm-up included).
        step, total: of the training.
        warmup: steps of the rise.
        factor, period: of "step".
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    if name == "step":
        return factor ** (step // period)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters, and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


class Ema:
    """Exponential moving average of trainable parameters (Polyak averaging), with a warm start.

    The running statistics of batch norms are averaged with them: those of the present weights do not fit
    the average.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that early averages are not held back by
    the random start.

    Args:
        model: whose trainable parameters are followed, and those buffers of floating point that are saved.
        decay: share of the old average kept per update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        saved = model.state_dict()
        followed = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        followed += [name for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()]
        present = _present(model)
        self.shadow = {name: present[name].clone() for name in followed}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = _present(model)
        averages: list[Tensor] = list(self.shadow.values())
        torch._foreach_lerp_(averages, [present[name] for name in self.shadow], 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the average; a second call exchanges them back."""
        present = _present(model)
        for name, average in self.shadow.items():
            held = present[name].clone()
            present[name].copy_(average)
            average.copy_(held)


def _present(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without their graph."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
