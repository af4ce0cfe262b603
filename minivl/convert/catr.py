"""CATR's checkpoints (https://github.com/saahiluppal/catr), versions 1 to 3, which share their keys.

The names are DETR's and those of `torch.nn.MultiheadAttention`, which fuses the projections of queries, keys and
values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models.grid import PREPROCESSING
from .described import Described
from .table import Rule, attention, renamed

__all__ = ["FIXED", "KIND", "NEEDED", "PREPROCESSING", "COMMON", "describe", "fields", "recognises", "table"]

KIND = "captioner"
NEEDED: tuple[str, ...] = ()
FIXED: dict[str, Any] = {
    "project": False,
    "encoder.act": "relu", "encoder.eps": 1e-5, "decoder.act": "relu", "decoder.eps": 1e-5,
    "decoder.norm": "pre", "decoder.positions": "learned", "decoder.scaled": False, "decoder.query_pos": True,
    "decoder.embed_norm": True, "decoder.embed_eps": 1e-12, "decoder.head": "mlp", "decoder.tied": False,
    "decoder.pad_id": 0, "decoder.bos_id": 101, "decoder.eos_id": 102,  # [PAD], [CLS] and [SEP] of BERT
}
COMMON: dict[str, Any] = {"encoder.num_heads": 8, "decoder.num_heads": 8}  # of every published one


TABLE = (
    *renamed({
        "backbone.0.body.{}.{}": "encoder.backbone.{}.{}",
        "backbone.0.body.{}.{}.{}.{}": "encoder.backbone.{}.{}.{}.{}",
        "backbone.0.body.{}.{}.downsample.{}.{}": "encoder.backbone.{}.{}.downsample.{}.{}",
        "input_proj.{}": "encoder.proj.{}",
        "transformer.embeddings.word_embeddings.weight": "decoder.embed.weight",
        "transformer.embeddings.position_embeddings.weight": "decoder.pos_embed",
        "transformer.embeddings.LayerNorm.{}": "decoder.embed_norm.{}",
        "mlp.layers.0.{}": "decoder.head_in.fc1.{}",
        "mlp.layers.1.{}": "decoder.head_in.fc2.{}",
        "mlp.layers.2.{}": "decoder.head.{}",
        # the first {} is encoder or decoder, which both sides call so
        "transformer.{}.layers.{}.linear1.{}": "{}.blocks.{}.mlp.fc1.{}",
        "transformer.{}.layers.{}.linear2.{}": "{}.blocks.{}.mlp.fc2.{}",
        **{f"transformer.{{}}.layers.{{}}.{norm}.{{}}": f"{{}}.blocks.{{}}.{norm}.{{}}"
           for norm in ("norm1", "norm2", "norm3")},
        "transformer.{}.norm.{}": "{}.norm.{}",
    }),
    *attention("transformer.{}.layers.{}.self_attn", "{}.blocks.{}.attn"),
    *attention("transformer.{}.layers.{}.multihead_attn", "{}.blocks.{}.cross"),
)


def recognises(names: set[str]) -> bool:
    """Whether these are CATR's keys: DETR's, and word embeddings."""
    return all(any(name.startswith(prefix) for name in names)
               for prefix in ("backbone.0.body.", "transformer.encoder.", "transformer.embeddings."))


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell. One odd tensor shall not change what all others say, so each size is read off as many
    as have it; a field whose tensors are missing is left out."""
    width = _commonest(state, r"transformer\.(?:en|de)coder\.layers\.\d+\.norm\d\.(?:weight|bias)")
    told: dict[str, Any] = {
        "encoder.layers": tuple(_count(state, rf"backbone\.0\.body\.layer{stage}\.(\d+)\..*") or 1
                                for stage in (1, 2, 3, 4)),
        "decoder.vocab_size": _commonest(state, r"mlp\.layers\.2\..*|transformer\.embeddings\.word_embeddings\..*"),
        "decoder.max_len": _commonest(state, r"transformer\.embeddings\.position_embeddings\.weight"),
        "decoder.head_dim": _commonest(state, r"mlp\.layers\.[01]\.(?:weight|bias)"),
    }
    for part in ("encoder", "decoder"):
        layers = rf"transformer\.{part}\.layers"
        told.update({f"{part}.width": width, f"{part}.depth": _count(state, rf"{layers}\.(\d+)\..*"),
                     f"{part}.mlp_dim": _commonest(state, rf"{layers}\.\d+\.linear1\.bias")})
    return {field: value for field, value in told.items() if value is not None}


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    return TABLE


def describe(config: Mapping[str, Any]) -> Described | None:
    """None: CATR has no file that describes a model."""
    return None


def _count(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """How many there are of what the names count from 0."""
    return max((int(match[1]) + 1 for name in state if (match := re.fullmatch(pattern, name))), default=None)


def _commonest(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """The commonest first dimension of the tensors of that name."""
    sizes = Counter(tensor.shape[0] for name, tensor in state.items() if re.fullmatch(pattern, name) and tensor.ndim)
    return sizes.most_common(1)[0][0] if sizes else None
