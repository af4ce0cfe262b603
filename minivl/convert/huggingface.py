"""What the models of Hugging Face transformers have in common: names of layers, words in their JSON files.

Their tensors are published under old names and held in memory under new ones (since transformers 5); both convert.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from re import fullmatch
from typing import Any

from torch import Tensor

from ..errors import InputError, some
from .table import renamed

log = logging.getLogger(__name__)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "quick_gelu": "quick_gelu", "relu": "relu"}
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

# a block of ViT and DeiT: as published, and in memory
PUBLISHED_BLOCK = renamed({
    "attention.attention.query.{}": "attn.q_proj.{}", "attention.attention.key.{}": "attn.k_proj.{}",
    "attention.attention.value.{}": "attn.v_proj.{}", "attention.output.dense.{}": "attn.out_proj.{}",
    "intermediate.dense.{}": "mlp.fc1.{}", "output.dense.{}": "mlp.fc2.{}",
    "layernorm_before.{}": "norm1.{}", "layernorm_after.{}": "norm2.{}"})
MEMORY_BLOCK = renamed({
    "attention.q_proj.{}": "attn.q_proj.{}", "attention.k_proj.{}": "attn.k_proj.{}",
    "attention.v_proj.{}": "attn.v_proj.{}", "attention.o_proj.{}": "attn.out_proj.{}",
    "mlp.fc1.{}": "mlp.fc1.{}", "mlp.fc2.{}": "mlp.fc2.{}",
    "layernorm_before.{}": "norm1.{}", "layernorm_after.{}": "norm2.{}"})


def of_memory(state: Mapping[str, Tensor]) -> bool:
    """Whether most attention layers are called as transformers 5 holds them in memory, and not as published."""
    in_memory = sum(name.endswith("attention.q_proj.weight") for name in state)
    return in_memory > sum(name.endswith("attention.attention.query.weight") for name in state)


def activation(config: Mapping[str, Any], key: str = "hidden_act", default: str = "gelu") -> str:
    """Our name of an activation in a config.json.

    Raises:
        InputError: it is none of ours.
    """
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise InputError(f"config: {key}={name!r} is unknown; known are: {some(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side or of both."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def commonest(state: Mapping[str, Tensor], pattern: str, axis: int = 0) -> int | None:
    """The commonest length along an axis of the tensors of that name: one odd tensor does not change it."""
    named = [tensor for name, tensor in state.items() if fullmatch(pattern, name)]
    sizes = Counter(tensor.shape[axis] for tensor in named if tensor.ndim > axis)
    return sizes.most_common(1)[0][0] if sizes else None


def depth(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """Number of blocks: one more than the highest number in the one group of the pattern."""
    return max((int(match[1]) + 1 for name in state if (match := fullmatch(pattern, name))), default=None)


def told(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that tensors do tell: those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def patches(state: Mapping[str, Tensor], projection: str, positions: str, n_prefix: int) -> dict[str, Any]:
    """in_channels, patch_size and image_size (of a square grid) out of patch projection and position table."""
    weight, table = state.get(projection), state.get(positions)
    fields: dict[str, Any] = {}
    if weight is None or weight.ndim != 4:
        return fields
    fields.update(in_channels=weight.shape[1], patch_size=tuple(weight.shape[2:]))
    if table is not None and table.ndim in (2, 3):
        n_patches = table.shape[-2] - n_prefix
        side = math.isqrt(max(n_patches, 0))
        if side * side == n_patches:
            fields["image_size"] = tuple(side * length for length in weight.shape[2:])
    return fields


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes in a config.json, in the order of their ids; None where it only numbers them."""
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not names:
        return None
    try:
        ordered = [str(names[key]) for key in sorted(names, key=int)]
    except ValueError:
        return None
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(ordered)) else tuple(ordered)


def preprocessing(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a preprocessor_config.json says.

    Returns:
        The fields of our `Preprocessing`; None, with a line in the log, where it does something that ours cannot.
    """
    size, crop = config.get("size"), config.get("crop_size")
    mean, std = config.get("image_mean"), config.get("image_std")
    interpolation = RESAMPLING.get(config.get("resample", 2))
    crops = bool(config.get("do_center_crop"))
    sides = _sides(size) if isinstance(size, Mapping) else None  # before the crop: squashed to these, if square
    squashed = crops and sides is not None and sides[0] == sides[1]
    short = sides[0] if squashed and sides else size.get("shortest_edge") if isinstance(size, Mapping) else size
    whole = _sides(crop if crops else size)
    unusual = [f"{key}={config[key]!r}" for key, usual in (("do_resize", True), ("do_rescale", True),
                                                           ("do_normalize", True)) if config.get(key, usual) != usual]
    if unusual or whole is None or mean is None or std is None or interpolation is None or (crops and short is None):
        log.info("preprocessor_config.json is left aside: %s", some(unusual) or f"size={size!r}, crop_size={crop!r}, "
                 f"resample={config.get('resample')!r} cannot be expressed here")
        return None
    if not crops or short is None:
        return {"size": whole, "mean": mean, "std": std, "crop_pct": 1.0, "mode": "squash",
                "interpolation": interpolation}
    share = whole[0] / short
    while math.floor(whole[0] / share) < short:  # a rounded quotient must not cost a pixel
        share = math.nextafter(share, 0)
    return {"size": whole, "mean": mean, "std": std, "crop_pct": share, "mode": "squash_crop" if squashed else "crop",
            "interpolation": interpolation}


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) of a size that gives both, in any of the spellings."""
    if isinstance(size, Mapping):
        return (size["height"], size["width"]) if {"height", "width"} <= set(size) else None
    return pair(size) if isinstance(size, (int, list, tuple)) else None
