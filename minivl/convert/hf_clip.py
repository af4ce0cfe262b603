"""CLIP of Hugging Face transformers; its tensors have the same names in memory and in published files."""

from __future__ import annotations

from collections.abc import Mapping
from re import fullmatch
from typing import Any

from torch import Tensor

from . import hf_text
from . import huggingface as hf
from .clip import KIND, NEEDED, VISION, as_table, as_token
from .described import Described
from .open_clip_config import LAST
from .table import Rule, drop, renamed, under

__all__ = ["FIXED", "KIND", "NEEDED", "describe", "fields", "recognises", "table"]

FIXED = hf_text.dotted("vision", {**VISION, "resize": "hf"})
_IMAGE_LAYER = r"vision_model\.encoder\.layers\.(\d+)\."
_TEXT_LAYER = r"text_model\.encoder\.layers\.(\d+)\."
_BLOCKS = under(renamed({
    **{f"self_attn.{name}_proj.{{}}": f"attn.{name}_proj.{{}}" for name in ("q", "k", "v", "out")},
    "layer_norm1.{}": "norm1.{}", "layer_norm2.{}": "norm2.{}", "mlp.fc1.{}": "mlp.fc1.{}",
    "mlp.fc2.{}": "mlp.fc2.{}"}), "encoder.layers.{}.")
_TABLE = (
    *under((*renamed({"embeddings.patch_embedding.weight": "patch_embed.proj.weight",
                      "pre_layrnorm.{}": "norm_pre.{}", "post_layernorm.{}": "norm.{}"}),
            Rule("embeddings.class_embedding", ("cls_token",), as_token),
            Rule("embeddings.position_embedding.weight", ("pos_embed",), as_table), *_BLOCKS),
           "vision_model.", "visual."),
    *under((*renamed({"embeddings.token_embedding.weight": "embed.weight",
                      "embeddings.position_embedding.weight": "pos_embed", "final_layer_norm.{}": "norm.{}"}),
            *_BLOCKS),
           "text_model.", "text."),
    *renamed({"visual_projection.weight": "visual.head.weight", "text_projection.weight": "text.head.weight",
              "logit_scale": "logit_scale"}),
    *(drop(f"{tower}_model.embeddings.position_ids", "positions are counted") for tower in ("vision", "text")),
)
# what a part of a config.json says where it does not say
DEFAULTS: dict[str, dict[str, Any]] = {
    "vision": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
               "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
               "layer_norm_eps": 1e-5, "attention_dropout": 0.0},
    "text": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
             "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
             "attention_dropout": 0.0, "bos_token_id": 49406, "eos_token_id": 49407}}
LEGACY_END = 2  # an eos_token_id that means the highest id of a text


def recognises(names: set[str]) -> bool:
    """Whether these are the keys of a CLIP of transformers, both towers."""
    return (any(fullmatch(_IMAGE_LAYER + r"self_attn\.[qkv]_proj\..+", name) for name in names)
            and any(fullmatch(_TEXT_LAYER + r".+", name) for name in names)
            and any(fullmatch(r"vision_model\.(?:pre_layrnorm\..+|embeddings\.class_embedding)", name)
                    for name in names))


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: never heads, activations, eps and special tokens."""
    width = hf.commonest(state, _IMAGE_LAYER + r"layer_norm[12]\.(?:weight|bias)")
    text_width = hf.commonest(state, _TEXT_LAYER + r"layer_norm[12]\.(?:weight|bias)")
    features = (hf_text.rows(state, width, "visual_projection.weight")
                or hf_text.rows(state, text_width, "text_projection.weight"))
    embeddings = "text_model.embeddings."
    seen = {"width": width, "depth": hf.depth(state, _IMAGE_LAYER + r".+"), "num_classes": features,
            "mlp_dim": hf.commonest(state, _IMAGE_LAYER + r"mlp\.fc1\.bias"),
            **hf.patches(state, "vision_model.embeddings.patch_embedding.weight",
                         "vision_model.embeddings.position_embedding.weight", 1)}
    said = {"width": text_width, "depth": hf.depth(state, _TEXT_LAYER + r".+"), "embed_dim": features,
            "mlp_dim": hf.commonest(state, _TEXT_LAYER + r"mlp\.fc1\.bias"),
            "vocab_size": hf_text.rows(state, text_width, f"{embeddings}token_embedding.weight"),
            "max_len": hf_text.rows(state, text_width, f"{embeddings}position_embedding.weight")}
    return {**hf_text.dotted("vision", hf.told(seen)), **hf_text.dotted("text", hf.told(said))}


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours."""
    return _TABLE


def describe(config: Mapping[str, Any]) -> Described | None:
    """What a config.json of model_type "clip" says; None for any other."""
    parts = (config.get(f"{tower}_config{again}") for tower in ("vision", "text") for again in ("", "_dict"))
    if config.get("model_type") != "clip" or not all(part is None or isinstance(part, Mapping) for part in parts):
        return None
    features = config.get("projection_dim", 512)
    vision, text = _part(config, "vision"), _part(config, "text")
    end = hf_text.token("eos_token_id", text, default=DEFAULTS["text"]["eos_token_id"])
    begin = hf_text.token("bos_token_id", text, default=DEFAULTS["text"]["bos_token_id"])
    if end == LEGACY_END:  # and then the begin is wrong there too
        end = min(LAST, text["vocab_size"] - 1)
        begin = end - 1
    seen = {"image_size": hf.pair(vision["image_size"]), "patch_size": hf.pair(vision["patch_size"]),
            "in_channels": vision["num_channels"], "num_classes": features}
    said = {"vocab_size": text["vocab_size"], "max_len": text["max_position_embeddings"], "embed_dim": features,
            "bos_id": begin, "eot_id": end, "pad_id": 0}
    for ours, theirs in ((seen, vision), (said, text)):
        ours.update(width=theirs["hidden_size"], depth=theirs["num_hidden_layers"], act=hf.activation(theirs),
                    num_heads=theirs["num_attention_heads"], mlp_dim=theirs["intermediate_size"],
                    eps=theirs["layer_norm_eps"], attn_dropout=theirs["attention_dropout"])
    return Described({**hf_text.dotted("vision", seen), **hf_text.dotted("text", said)})


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of one tower. Old files give it twice; the second time, ``_dict`` behind its name, it wins, with the
    defaults for what it does not say."""
    told, again = config.get(f"{name}_config") or {}, config.get(f"{name}_config_dict")
    return {**DEFAULTS[name], **told} if again is None else {**told, **DEFAULTS[name], **again}
