"""Optimiser groups, the learning-rate schedule, and a moving average of weights."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.grid import GridEncoder
from ..models.vit import ViT

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant", "step")
# within a ViT: what comes before its blocks, for layer-wise rates, and what is no part of it as an encoder
FIRST = re.compile(r"(?:patch_embed|norm_pre)\.|(?:cls|dist|reg)_token$|pos_embed$")
BLOCK = re.compile(r"blocks\.(\d+)\.")
HEAD = re.compile(r"head(?:_dist)?\.")


def encoder_in(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The encoder of pictures in a model, with what its parameters' names begin with there.

    Returns:
        ``(prefix, encoder)``: a ViT itself ("", its head is no part of the encoder), the "encoder." of a captioner, the
        "visual." of an image-text pair (its projection is a head); None where there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, (ViT, GridEncoder)):
            return f"{name}." if name else "", module
    return None


def decay_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0,
                 encoder_scale: float = 1.0) -> list[dict[str, Any]]:
    """Groups of the trainable parameters for an optimiser: matrices of linear and convolution layers decay,
    everything else (biases, norms, embeddings, position tables, [class] and register tokens) does not.

    Args:
        model: with one of the two factors a model with an encoder (see `encoder_in`).
        weight_decay: of the matrices.
        layer_decay: factor on the learning rate per layer of the encoder, counted from its head down (Clark et al.
            2020; Bao et al. 2022, BEiT): block i of n learns at layer_decay^(n - i), what lies before block 0 at
            layer_decay^(n + 1), its last norm and what is no encoder at 1.
        encoder_scale: a further factor on all rates within the encoder.

    Returns:
        Groups, each with "params", "names", "weight_decay" and "scale" (of its learning rate).

    Raises:
        InputError: a factor for a model that has no encoder, or layer_decay for one that is no ViT.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = encoder_in(model)
    if found is None and (layer_decay, encoder_scale) != (1, 1):
        raise InputError("layer_decay and a rate of its own are for the encoder of pictures; this model has none")
    if layer_decay != 1 and found is not None and not isinstance(found[1], ViT):
        raise InputError(f"layer_decay={layer_decay}: this encoder is no ViT; give 1")
    chosen: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) in matrices and id(parameter) not in tables
        scale = 1.0
        if found is not None and _inside(name, found[0]):
            scale = encoder_scale * layer_decay ** _layers_above(name[len(found[0]):], found[1])
        group = chosen.setdefault((decays, scale), {"params": [], "names": [], "scale": scale,
                                                    "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(chosen.values(), key=lambda group: (not group["weight_decay"], group["scale"]))


def _inside(name: str, prefix: str) -> bool:
    """Whether a parameter is of the encoder with this prefix."""
    return name.startswith(prefix) and not HEAD.match(name[len(prefix):])


def _layers_above(name: str, encoder: nn.Module) -> int:
    """Layers between a parameter of an encoder, by its name there, and the head."""
    depth = encoder.config.depth if isinstance(encoder, ViT) else 0
    if match := BLOCK.match(name):
        return depth - int(match[1])
    return depth + 1 if FIRST.match(name) else 0


def freeze_encoder(model: nn.Module, unfreeze: int = 0) -> None:
    """Train no parameter of the encoder of pictures, or none below its last blocks; in place.

    Args:
        model: with an encoder (see `encoder_in`).
        unfreeze: how many of its last blocks are trained, and then its last norm too; 0 = nothing of it.

    Raises:
        InputError: a model without an encoder; more blocks than there are.
    """
    prefix, encoder = encoder_in(model) or ("", None)
    if not isinstance(encoder, ViT):
        raise InputError("this model has no ViT as its encoder, of which parts could be frozen")
    depth = encoder.config.depth
    if not 0 <= unfreeze <= depth:
        raise InputError(f"unfreeze={unfreeze}: the encoder has {depth} blocks")
    for name, parameter in model.named_parameters():
        if _inside(name, prefix):
            parameter.requires_grad_(bool(unfreeze) and _layers_above(name[len(prefix):], encoder) <= unfreeze)


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
