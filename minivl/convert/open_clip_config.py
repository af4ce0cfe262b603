"""What open_clip's descriptions of its models say: ``open_clip_config.json`` of the hub, and its model configs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError, some
from ..models.clip_presets import PREPROCESSING
from . import hf_text
from . import huggingface as hf
from .described import Described

if TYPE_CHECKING:
    from ..images import Preprocessing

log = logging.getLogger(__name__)

LAST = 49407  # the id of the end of text in CLIP's vocabulary

# Fields that are read, and their values where they are not given.
MODEL: dict[str, Any] = {"embed_dim": 512, "quick_gelu": False, "vision_cfg": {}, "text_cfg": {}}
VISION: dict[str, Any] = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
                          "image_size": 224, "norm_kwargs": None}
TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
                        "mlp_ratio": 4.0, "pad_id": 0, "eos_id": 2, "pool_type": "argmax", "norm_kwargs": None}
# Fields of models that ours cannot be: what they must be.
_BOTH = {"ls_init_value": None, "final_ln_after_pool": False, "act_kwargs": None, "qk_norm": False,
         "scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False,
         "scale_fc": False}
MODEL_USUAL: dict[str, Any] = {"init_logit_bias": None, "multimodal_cfg": None}
VISION_USUAL: dict[str, Any] = {**_BOTH, "attentional_pool": False, "no_ln_pre": False, "pool_type": "tok",
                                "timm_model_name": None}
TEXT_USUAL: dict[str, Any] = {**_BOTH, "hf_model_name": None, "embed_cls": False, "no_causal_mask": False,
                              "proj_bias": False, "proj_type": "linear", "tokenizer_mode": None,
                              "tokenizer_kwargs": None}
# Fields that change nothing here: of training, of what is refused above, of equal arithmetic.
MODEL_OTHER = {"custom_text", "init_logit_scale", "nonscalar_logit_scale", "cast_dtype", "output_dict"}
VISION_OTHER = {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type", "output_tokens",
                "block_type", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
                "timm_drop_path"}
TEXT_OTHER = {"hf_tokenizer_name", "output_tokens", "block_type", "hf_model_pretrained", "hf_proj_type",
              "hf_pooler_type"}
MODES = {"shortest": "crop", "squash": "squash"}


def read_config(config: Mapping[str, Any]) -> Described | None:
    """Our fields and preprocessing; None if this is no description of open_clip's.

    Raises:
        InputError: a field that ours has no counterpart of, by name and value.
    """
    inner = config.get("model_cfg", config)
    if not isinstance(inner, Mapping) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(inner):
        return None
    model = _read(inner, "model_cfg", MODEL, MODEL_USUAL, MODEL_OTHER)
    vision = _read(model["vision_cfg"], "vision_cfg", VISION, VISION_USUAL, VISION_OTHER)
    text = _read(model["text_cfg"], "text_cfg", TEXT, TEXT_USUAL, TEXT_OTHER)
    act = "quick_gelu" if model["quick_gelu"] else "gelu"
    size = hf.pair(vision["image_size"])
    seen = {"width": vision["width"], "depth": vision["layers"], "num_heads": vision["width"] // vision["head_width"],
            "mlp_dim": int(vision["width"] * vision["mlp_ratio"]), "patch_size": hf.pair(vision["patch_size"]),
            "image_size": size, "act": act, "eps": _eps(vision, "vision_cfg"), "num_classes": model["embed_dim"]}
    begin, end = _ends(text)
    said = {"width": text["width"], "depth": text["layers"], "num_heads": text["heads"],
            "mlp_dim": int(text["width"] * text["mlp_ratio"]), "vocab_size": text["vocab_size"],
            "max_len": text["context_length"], "embed_dim": model["embed_dim"], "act": act,
            "eps": _eps(text, "text_cfg"), "eot_id": end, "bos_id": begin, "pad_id": text["pad_id"]}
    return Described({**hf_text.dotted("vision", seen), **hf_text.dotted("text", said)},
                     _preprocessing(config.get("preprocess_cfg") or {}, size) if "model_cfg" in config else None)


def _read(given: Any, part: str, read: Mapping[str, Any], usual: Mapping[str, Any], other: set[str]) -> dict[str, Any]:
    """The fields of one part that are read, given or not; raises where another one matters."""
    if not isinstance(given, Mapping):
        raise InputError(f"config: {part}={given!r}: fields and values are needed")
    for key, value in given.items():
        if key in usual and (value or None) != (usual[key] or None):
            raise InputError(f"config: {part}.{key}={value!r} is not supported, {usual[key]!r} is")
        if key in read and not _alike(key, value, read[key]):
            raise InputError(f"config: {part}.{key}={value!r} is not supported, a value like {read[key]!r} is")
    if strange := [key for key in given if not (key in read or key in usual or key in other)]:
        raise InputError(f"config: {part} has unknown fields: {some(strange)}")
    return {**read, **{key: given[key] for key in read if key in given}}


def _alike(key: str, value: Any, default: Any) -> bool:
    """Whether a value is of the kind of the usual one: the layers of a ResNet, say, are a list."""
    if key in ("patch_size", "image_size") and isinstance(value, (list, tuple)):
        return len(value) == 2 and all(type(side) is int for side in value)
    if key == "norm_kwargs":
        return value is None or isinstance(value, Mapping)
    if key == "pool_type":
        return value in ("argmax", "eos")
    if isinstance(default, dict):  # a part, whose own fields are looked at
        return True
    alike = type(value) is type(default) or type(value) is int and type(default) is float
    return alike and (isinstance(default, bool) or value > 0 or key.endswith("_id"))


def _eps(given: Mapping[str, Any], part: str) -> float:
    values = dict(given["norm_kwargs"] or {})
    eps = values.pop("eps", 1e-5)
    if values:
        raise InputError(f"config: {part}.norm_kwargs with {some(values)} is not supported, only eps is")
    return eps


def _ends(text: Mapping[str, Any]) -> tuple[int, int]:
    """The tokens that begin and end a text. Its features are those of its end: with "argmax" of the highest token,
    which is the last of CLIP's vocabulary, and the begin is the one before; others have the begin first."""
    last = min(LAST, text["vocab_size"] - 1)
    end = text["eos_id"] if text["pool_type"] == "eos" else last
    return (end - 1 if end == last else int(end == 0)), end


def _preprocessing(given: Mapping[str, Any], size: tuple[int, int]) -> Preprocessing | None:
    """What open_clip makes of a photo; None, with a line in the log, where ours cannot."""
    values = {key: value for key, value in given.items() if value is not None}
    mode = values.get("resize_mode", "shortest")
    if mode not in MODES:
        log.info("open_clip_config.json: resize_mode=%r cannot be expressed here, preprocessing is left aside", mode)
        return None
    told = {key: values[key] for key in ("mean", "std", "interpolation") if key in values}
    if told.get("interpolation") == "random":  # in training only
        told["interpolation"] = "bicubic"
    return replace(PREPROCESSING, size=size, mode=MODES[mode], **told)
