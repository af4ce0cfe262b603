"""Optimiser groups, the learning-rate schedule, and a moving average of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups of the trainable parameters: matrices of linear and convolution layers decay,
    everything else (biases, norms, embeddings, position tables, [class] tokens) does not.

    Returns:
        Two groups, each with "params", "names" and "weight_decay".
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: list[dict[str, object]] = []
    for decays in (True, False):
        chosen = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
                  and (id(parameter) in matrices and id(parameter) not in tables) == decays]
        if chosen:
            groups.append({"params": [parameter for _, parameter in chosen],
                           "names": [name for name, _ in chosen],
                           "weight_decay": weight_decay if decays else 0.0})
    return groups


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate at `step` (0-based): linear to 1 over `warmup` steps, then a half
    cosine to 0 at `total` (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return (step + 1) / warmup
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
