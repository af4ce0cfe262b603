"""The course captioner: a timm ViT, at all of whose tokens a post-norm `torch.nn.TransformerDecoder` looks."""

from __future__ import annotations

from collections.abc import Mapping
from re import fullmatch
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, some
from ..models.presets import ALIASES, PRESETS, Preset
from ..nn.embed import sinusoids
from . import huggingface as hf
from . import timm
from .described import Described
from .table import Rule, drop, renamed, under

KIND = "captioner"
NEEDED = (*(f"encoder.{field}" for field in timm.NEEDED), "decoder.num_heads")
FIXED: dict[str, Any] = {
    "project": False, **{f"encoder.{field}": value for field, value in timm.FIXED.items()}, "encoder.num_classes": 0,
    "decoder.norm": "post", "decoder.positions": "sinusoidal", "decoder.scaled": False, "decoder.embed_norm": False,
    "decoder.query_pos": False, "decoder.head": "linear", "decoder.tied": False, "decoder.eps": 1e-5,
    "decoder.pad_id": 0, "decoder.bos_id": 2, "decoder.eos_id": 3,
}
WAVES = "positional_embedding.pe"
_LAYER = r"decoder\.layers\.(\d+)\."
_HEADS = ("head", "head_dist", "pre_logits")  # of the encoder


def _attention(source: str, target: str) -> tuple[Rule, ...]:
    """The four tensors of a `torch.nn.MultiheadAttention`."""
    fused = tuple(Rule(f"{source}.in_proj_{kind}", tuple(f"{target}.{letter}_proj.{kind}" for letter in "qkv"))
                  for kind in ("weight", "bias"))
    return (*fused, Rule(f"{source}.out_proj.{{}}", (f"{target}.out_proj.{{}}",)))


_DECODER = (
    *renamed({"word_embedding.weight": "decoder.embed.weight", "head.{}": "decoder.head.{}"}),
    *hf.blocks((*_attention("self_attn", "attn"), *_attention("multihead_attn", "cross"),
                *renamed({"linear1.{}": "mlp.fc1.{}", "linear2.{}": "mlp.fc2.{}",
                          **{f"{norm}.{{}}": f"{norm}.{{}}" for norm in ("norm1", "norm2", "norm3")}})),
               "decoder.layers.{}.", "decoder.blocks.{}."),
)
