"""Plain ViTs under timm's key names (also the keys of DeiT's own files)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor

from ..errors import InputError, some
from ..models.presets import PRESETS
from .described import Described
from .table import Rule

KIND = "vit"
NEEDED = ("num_heads",)
FIXED: dict[str, Any] = {}
_QKV = tuple(f"blocks.{{}}.attn.{letter}_proj.{{}}" for letter in "qkv")
TABLE = (
    *(Rule(name, (name,)) for name in (
        "cls_token", "pos_embed", "patch_embed.proj.{}", "blocks.{}.norm1.{}", "blocks.{}.norm2.{}",
        "blocks.{}.mlp.fc1.{}", "blocks.{}.mlp.fc2.{}", "norm.{}", "fc_norm.{}", "head.{}")),
    Rule("blocks.{}.attn.qkv.{}", _QKV),
    Rule("blocks.{}.attn.proj.{}", ("blocks.{}.attn.out_proj.{}",)),
)
# what timm's description calls our fields, and its words for `pool`
ARGUMENTS = {"num_classes": "num_classes", "global_pool": "pool", "in_chans": "in_channels",
             "img_size": "image_size"}
POOLS = {"token": "class", "avg": "mean"}


def recognises(names: set[str]) -> bool:
    """Whether these are a timm ViT's keys."""
    return any(re.fullmatch(r"blocks\.\d+\.attn\.qkv\.weight", name) for name in names)


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: fields of `ViTConfig`, never num_heads, act, eps and dropout.

    One odd tensor shall not change what all others say, so sizes are read off vectors, of which blocks
    have many; a field whose tensors are missing is left out. The grid is taken to be square, and left out
    where it is not.
    """
    blocks = [re.fullmatch(r"blocks\.(\d+)\.(?:norm1|attn\.qkv)\.weight", name) for name in state]
    told: dict[str, Any] = {
        "depth": max((int(match[1]) + 1 for match in blocks if match), default=None),
        "width": _commonest(state, r"blocks\.\d+\.norm[12]\.(?:weight|bias)"),
        "mlp_dim": _commonest(state, r"blocks\.\d+\.mlp\.fc1\.bias"),
        "num_classes": _commonest(state, r"head\.bias") or _commonest(state, r"head\.weight") or 0,
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in state),
        "class_token": "cls_token" in state,
        "stem": (),
    }
    patch, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patch is not None and patch.ndim == 4:
        told.update(in_channels=patch.shape[1], patch_size=tuple(patch.shape[2:]))
    if positions is not None and positions.ndim == 3:
        n_tokens = positions.shape[1]
        told["class_token"] |= isqrt(n_tokens) ** 2 != n_tokens  # else its loss would look like an odd grid
        side = isqrt(n_tokens - told["class_token"])
        if "patch_size" in told and side * side == n_tokens - told["class_token"]:
            told["image_size"] = tuple(side * length for length in told["patch_size"])
    told["pool"] = "mean" if "fc_norm.weight" in state or not told["class_token"] else "class"
    return {field: value for field, value in told.items() if value is not None}


def _commonest(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """The commonest first dimension of the tensors of that name."""
    named = [tensor for name, tensor in state.items() if re.fullmatch(pattern, name)]
    sizes = Counter(tensor.shape[0] for tensor in named if tensor.ndim)
    return sizes.most_common(1)[0][0] if sizes else None


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    return TABLE


def describe(config: Mapping[str, Any]) -> Described | None:
    """Our fields and preprocessing out of timm's own description.

    Args:
        config: its hub ``config.json``, or the ``pretrained_cfg`` of one of its models.

    Returns:
        ``(fields, preprocessing)``, or None if this is no such description.

    Raises:
        InputError: the architecture is not one of `PRESETS`, or changed in a way that has no field here.
    """
    if "architecture" not in config:
        return None
    name, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    cfg = config.get("pretrained_cfg") or config  # a pretrained_cfg is flat
    if name not in PRESETS:
        raise InputError(f"architecture {name!r} is not among the presets: give our own fields as config")
    if strange := [argument for argument in arguments if argument not in ARGUMENTS]:
        raise InputError(f"config: model_args {some(strange)} are unknown; known are: {some(ARGUMENTS)}")
    if cfg.get("crop_mode", "center") != "center":
        raise InputError(f"config: crop_mode={cfg['crop_mode']!r} is not supported, \"center\" is")
    arguments.update((key, config[key]) for key in ("num_classes", "global_pool") if key in config)
    if (pool := arguments.get("global_pool", "token")) not in POOLS:
        raise InputError(f"config: global_pool={pool!r} is not supported; known are: {some(POOLS)}")
    preset = PRESETS[name]
    told = {field: getattr(preset.config, field)
            for field in ("width", "depth", "num_heads", "mlp_dim", "patch_size", "act", "eps")}
    told["image_size"] = tuple(cfg.get("input_size", (3, *preset.config.image_size)))[1:]
    told.update((ARGUMENTS[key], value) for key, value in arguments.items())
    if "pool" in told:
        told["pool"] = POOLS[pool]
    changes = {key: cfg[key] for key in ("mean", "std", "crop_pct", "interpolation") if key in cfg}
    return Described(told, replace(preset.preprocessing, **changes))
