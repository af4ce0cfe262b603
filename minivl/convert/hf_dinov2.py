"""DINOv2 of Hugging Face transformers, with and without registers."""

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
FIXED: dict[str, Any] = {"stem": (), "class_token": True, "layer_scale": True}
_PREFIX = r"(?:dinov2\.|dinov2_with_registers\.)?"
_LAYER = _PREFIX + r"encoder\.layer\.(\d+)\."
_BLOCK = renamed({"norm1.{}": "norm1.{}", "norm2.{}": "norm2.{}", "layer_scale1.lambda1": "ls1.gamma",
                  "layer_scale2.lambda1": "ls2.gamma"})
_MLP = {  # (gated, as in memory)
    (False, False): renamed({"mlp.fc1.{}": "mlp.fc1.{}", "mlp.fc2.{}": "mlp.fc2.{}"}),
    (True, False): (Rule("mlp.weights_in.{}", ("mlp.gate.{}", "mlp.fc1.{}")),
                    Rule("mlp.weights_out.{}", ("mlp.fc2.{}",))),
    (True, True): renamed({"mlp.gate_proj.{}": "mlp.gate.{}", "mlp.up_proj.{}": "mlp.fc1.{}",
                           "mlp.down_proj.{}": "mlp.fc2.{}"})}
_MLP[False, True] = _MLP[False, False]


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of a DINOv2 of transformers."""
    return any(fullmatch(_LAYER + r"layer_scale1\.lambda1", name) for name in names)


def prepare(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Registers have no positions: where there are some, the [class] token takes up its own, so that the table is of
    patches only."""
    state, prefix = dict(state), _prefix(set(state))
    token, positions = f"{prefix}embeddings.cls_token", f"{prefix}embeddings.position_embeddings"
    if f"{prefix}embeddings.register_tokens" not in state or not {token, positions} <= set(state):
        return state, []
    cls, table = state[token], state[positions]
    if cls.shape != (1, 1, table.shape[-1]) or table.ndim != 3:
        return state, []  # the check of shapes will say so
    state[token], state[positions] = cls + table[:, :1], table[:, 1:]
    return state, [f"{token} has taken up its row of {positions}"]


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: fields of `ViTConfig`, never num_heads, act and eps."""
    prefix = _prefix(set(state))
    registers = state.get(f"{prefix}embeddings.register_tokens")
    fused = hf.commonest(state, _LAYER + r"mlp\.weights_in\.bias")
    classes = hf.commonest(state, r"classifier\.(?:bias|weight)") or 0
    return hf.told({
        "depth": hf.depth(state, _LAYER + r".+"),
        "width": hf.commonest(state, _LAYER + r"norm[12]\.(?:weight|bias)"),
        "mlp_dim": fused // 2 if fused else hf.commonest(state, _LAYER + r"mlp\.(?:fc1|up_proj)\.bias"),
        "mlp": "swiglu" if _gated(state) else "mlp", "num_classes": classes,
        "pool": "class+mean" if classes else "class",
        "qkv_bias": any(fullmatch(_LAYER + r".*(?:query|q_proj)\.bias", name) for name in state),
        "registers": registers.shape[1] if registers is not None and registers.ndim == 3 else 0,
        "pos_prefix": registers is None, "norm_after_pool": False,
        "resize": "hf" if registers is None else "timm",  # with antialias: not the rule of those without registers
        **hf.patches(state, f"{prefix}embeddings.patch_embeddings.projection.weight",
                     f"{prefix}embeddings.position_embeddings", int(registers is None))})


def _gated(state: Mapping[str, Tensor]) -> bool:
    return any(fullmatch(_LAYER + r"mlp\.(?:weights_in|gate_proj)\..+", name) for name in state)


def _prefix(names: set[str]) -> str:
    return next((prefix for prefix in ("dinov2.", "dinov2_with_registers.")
                 if any(name.startswith(prefix) for name in names)), "")


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    rules = renamed({
        "embeddings.cls_token": "cls_token", "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.{}": "patch_embed.proj.{}", "layernorm.{}": "norm.{}"})
    memory = hf.of_memory(state)
    attention = (hf.MEMORY_BLOCK if memory else hf.PUBLISHED_BLOCK)[:4]
    rules += under(attention + _BLOCK + _MLP[_gated(state), memory], "encoder.layer.{}.")
    rules += (drop("embeddings.mask_token", "masked tokens are of pretraining only"),)
    return under(rules, _prefix(set(state)), "") + renamed({"classifier.{}": "head.{}"})


def describe(config: Mapping[str, Any]) -> Described | None:
    """What a config.json of model_type "dinov2" or "dinov2_with_registers" says; None for any other."""
    if config.get("model_type") not in ("dinov2", "dinov2_with_registers"):
        return None
    return Described({
        "width": config.get("hidden_size", 768), "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12), "act": hf.activation(config),
        "eps": config.get("layer_norm_eps", 1e-6), "image_size": hf.pair(config.get("image_size", 224)),
        "patch_size": hf.pair(config.get("patch_size", 14 if "registers" in config["model_type"] else 16)),
        "in_channels": config.get("num_channels", 3), "qkv_bias": config.get("qkv_bias", True),
        "mlp": "swiglu" if config.get("use_swiglu_ffn") else "mlp"}, None, hf.class_names(config))
