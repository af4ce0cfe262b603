"""ViTs of lukemelas' PyTorch-Pretrained-ViT (https://github.com/lukemelas/PyTorch-Pretrained-ViT), version 0.0.7."""

from __future__ import annotations

from collections.abc import Mapping
from re import fullmatch
from typing import Any

from torch import Tensor

from ..images import Preprocessing
from . import huggingface as hf
from .described import Described
from .table import Rule, drop, renamed, under

KIND = "vit"
NEEDED = ("num_heads",)
FIXED: dict[str, Any] = {"stem": (), "class_token": True, "pool": "class", "norm_after_pool": False, "qkv_bias": True,
                         "act": "gelu", "eps": 1e-6, "resize": "lukemelas"}
PREPROCESSING = Preprocessing((384, 384), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, "squash", "bilinear")
_BLOCK = r"transformer\.blocks\.(\d+)\."
TABLE = (
    *renamed({"class_token": "cls_token", "positional_embedding.pos_embedding": "pos_embed",
              "patch_embedding.{}": "patch_embed.proj.{}", "norm.{}": "norm.{}", "fc.{}": "head.{}"}),
    *under(renamed({"norm1.{}": "norm1.{}", "norm2.{}": "norm2.{}", "proj.{}": "attn.out_proj.{}",
                   **{f"attn.proj_{letter}.{{}}": f"attn.{letter}_proj.{{}}" for letter in "qkv"},
                   "pwff.fc1.{}": "mlp.fc1.{}", "pwff.fc2.{}": "mlp.fc2.{}"}), "transformer.blocks.{}."),
    drop("pre_logits.{}", "the representation layer, which this library's own loader leaves out too"),
)


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of this library."""
    return any(fullmatch(_BLOCK + r"attn\.proj_[qkv]\.weight", name) for name in names)


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: fields of `ViTConfig`, never num_heads."""
    return hf.told({
        "depth": hf.depth(state, _BLOCK + r".+"),
        "width": hf.commonest(state, _BLOCK + r"norm[12]\.(?:weight|bias)"),
        "mlp_dim": hf.commonest(state, _BLOCK + r"pwff\.fc1\.(?:bias|weight)"),
        "num_classes": hf.commonest(state, r"fc\.bias") or hf.commonest(state, r"fc\.weight") or 0,
        **hf.patches(state, "patch_embedding.weight", "positional_embedding.pos_embedding", 1)})


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    return TABLE


def describe(config: Mapping[str, Any]) -> Described | None:
    """None: this library publishes tensors only."""
    return None
