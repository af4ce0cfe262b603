"""ViT and DeiT of Hugging Face transformers (DINO's models there are ViTs)."""

from __future__ import annotations

from collections.abc import Mapping
from re import fullmatch
from typing import Any

from torch import Tensor

from . import huggingface as hf
from .described import Described
from .table import Rule, drop, renamed, under

KIND = "vit"
NEEDED = ("num_heads", "act", "eps")
FIXED: dict[str, Any] = {"resize": "hf", "stem": ()}
PREFIXES = ("", "vit.", "deit.")
_LAYER = r"(?:vit\.|deit\.)?(?:encoder\.layer|layers)\.(\d+)\."
_EMBEDDINGS = renamed({
    "embeddings.cls_token": "cls_token", "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed", "embeddings.patch_embeddings.projection.{}": "patch_embed.proj.{}",
    "layernorm.{}": "norm.{}"}) + (
        drop("embeddings.mask_token", "masked tokens are of pretraining only"),
        drop("embeddings.position_ids", "positions are counted"),
        drop("pooler.dense.{}", "the pooler is no part of the logits"))
_HEADS = renamed({"classifier.{}": "head.{}", "cls_classifier.{}": "head.{}",
                  "distillation_classifier.{}": "head_dist.{}"})


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of a ViT of transformers."""
    return (any(fullmatch(_LAYER + r"layernorm_before\.weight", name) for name in names)
            and any(fullmatch(r"(?:vit\.|deit\.)?embeddings\..+", name) for name in names))


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: fields of `ViTConfig`, never num_heads, act and eps."""
    prefix = _prefix(set(state))
    distilled = f"{prefix}embeddings.distillation_token" in state
    return hf.told({
        "depth": hf.depth(state, _LAYER + r".+"),
        "width": hf.commonest(state, _LAYER + r"layernorm_(?:before|after)\.(?:weight|bias)"),
        "mlp_dim": hf.commonest(state, _LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.bias"),
        "num_classes": hf.commonest(state, r"(?:cls_)?classifier\.(?:bias|weight)") or 0,
        "qkv_bias": any(fullmatch(_LAYER + r".*(?:query|q_proj)\.bias", name) for name in state),
        "class_token": True, "dist_token": distilled, "pool": "class", "norm_after_pool": False,
        **hf.patches(state, f"{prefix}embeddings.patch_embeddings.projection.weight",
                     f"{prefix}embeddings.position_embeddings", 1 + distilled)})


def _prefix(names: set[str]) -> str:
    return next((prefix for prefix in ("vit.", "deit.") if any(name.startswith(prefix) for name in names)), "")


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    rules = _EMBEDDINGS + (under(hf.MEMORY_BLOCK, "layers.{}.") if hf.of_memory(state)
                           else under(hf.PUBLISHED_BLOCK, "encoder.layer.{}."))
    return under(rules, _prefix(set(state)), "") + _HEADS


def describe(config: Mapping[str, Any]) -> Described | None:
    """What a config.json of model_type "vit" or "deit" says; None for any other."""
    if config.get("model_type") not in ("vit", "deit"):
        return None
    names = hf.class_names(config)
    return Described({
        "width": config.get("hidden_size", 768), "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12), "mlp_dim": config.get("intermediate_size", 3072),
        "act": hf.activation(config), "eps": config.get("layer_norm_eps", 1e-12),
        "image_size": hf.pair(config.get("image_size", 224)), "patch_size": hf.pair(config.get("patch_size", 16)),
        "in_channels": config.get("num_channels", 3), "qkv_bias": config.get("qkv_bias", True)}, None, names)
