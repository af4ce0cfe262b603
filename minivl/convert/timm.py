"""Plain ViTs under timm's key names (also those of DeiT's, DINO's and DINOv2's own files)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isqrt, prod
from re import fullmatch
from typing import Any

from torch import Tensor

from ..errors import InputError, some
from ..images import Preprocessing
from ..models.presets import ALIASES, PRESETS, Preset
from . import huggingface as hf
from .described import Described
from .table import Rule, drop, renamed, same

KIND = "vit"
NEEDED: tuple[str, ...] = ("num_heads",)
FIXED: dict[str, Any] = {"stem": (), "head_bias": True}
_BLOCK = r"blocks\.(\d+)\."
_QKV = tuple(f"blocks.{{}}.attn.{letter}_proj.{{}}" for letter in "qkv")
TABLE = (
    *same("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.{}", "norm_pre.{}", "norm.{}",
          "fc_norm.{}", "head.{}", "head_dist.{}", "blocks.{}.norm1.{}", "blocks.{}.norm2.{}", "blocks.{}.ls1.gamma",
          "blocks.{}.ls2.gamma", "blocks.{}.mlp.fc2.{}"),
    Rule("blocks.{}.attn.qkv.{}", _QKV),
    *renamed({"blocks.{}.attn.proj.{}": "blocks.{}.attn.out_proj.{}"}),
    *(drop(f"pre_logits.{rest}", "the representation layer, which timm leaves out too") for rest in ("{}", "fc.{}")),
    drop("mask_token", "masked tokens are of pretraining only"),
)
_MLP = same("blocks.{}.mlp.fc1.{}")
_GATED = (Rule("blocks.{}.mlp.fc1.{}", ("blocks.{}.mlp.gate.{}", "blocks.{}.mlp.fc1.{}")),)
# Facebook's names of what timm calls otherwise: DeiT III's, DINOv2's
_FACEBOOK = (
    renamed({"blocks.{}.gamma_1": "blocks.{}.ls1.gamma", "blocks.{}.gamma_2": "blocks.{}.ls2.gamma"}),
    renamed({"register_tokens": "reg_token"}),
    (Rule("blocks.{}.mlp.w12.{}", ("blocks.{}.mlp.gate.{}", "blocks.{}.mlp.fc1.{}")),
     Rule("blocks.{}.mlp.w3.{}", ("blocks.{}.mlp.fc2.{}",))),
)
_PATTERNS = (_BLOCK + r"gamma_[12]", "register_tokens|mask_token", _BLOCK + r"mlp\.w(?:12|3)\..+")


def recognises(names: set[str]) -> bool:
    """Whether these are a timm ViT's keys."""
    return any(fullmatch(_BLOCK + r"attn\.qkv\.weight", name) for name in names)


# -- what the tensors tell ---------------------------------------------------------------------------------------

def prepare(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """In DINOv2's own files with registers the table has a row for the [class] token and none for the registers: the
    token takes up its row, so that the table is of patches only."""
    state = dict(state)
    token, positions, width = state.get("cls_token"), state.get("pos_embed"), _width(state)
    if "register_tokens" not in state or positions is None or positions.ndim != 3 or positions.shape[2] != width:
        return state, []  # where something is amiss, the check of names and shapes will say so
    state["pos_embed"] = positions[:, 1:]
    if token is None or token.shape != (1, 1, width):
        return state, []
    state["cls_token"] = (token.float() + positions[:, :1].float()).to(token.dtype)
    return state, ["cls_token has taken up its row of pos_embed"]


def _width(state: Mapping[str, Tensor]) -> int | None:
    return hf.commonest(state, _BLOCK + r"norm[12]\.(?:weight|bias)")


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell: fields of `ViTConfig`, never num_heads, act, eps and dropout.

    One odd tensor shall not change what all others say, so sizes are read off those of which blocks have many; a
    field whose tensors are missing is left out. The grid is taken to be square, and left out where it is not.
    """
    registers = state.get("reg_token", state.get("register_tokens"))
    hidden = hf.commonest(state, _BLOCK + r"mlp\.(?:fc1|w12)\.(?:weight|bias)")
    gated = _gated(state)
    told: dict[str, Any] = {
        "depth": hf.depth(state, _BLOCK + r".+"),
        "width": _width(state),
        "mlp_dim": hidden // 2 if hidden and gated else hidden, "mlp": "swiglu" if gated else "mlp",
        "num_classes": hf.commonest(state, r"head\.bias") or hf.commonest(state, r"head\.weight") or 0,
        "qkv_bias": any(fullmatch(_BLOCK + r"attn\.qkv\.bias", name) for name in state),
        "layer_scale": any(fullmatch(_BLOCK + r"(?:ls[12]\.gamma|gamma_[12])", name) for name in state),
        "dist_token": "dist_token" in state or _any(state, "head_dist."),
        "registers": registers.shape[1] if registers is not None and registers.ndim == 3 else 0,
        "pre_norm": _any(state, "norm_pre."), "patch_bias": not _any(state, "norm_pre."),
        "norm_after_pool": _any(state, "fc_norm."), "resize": _rule(state),
    }
    told.update(_grid(state, int(told["dist_token"]) + told["registers"]))
    if told["norm_after_pool"]:
        told["pool"] = "mean"
        told.setdefault("class_token", False)  # nothing looks at one, and nothing else says that it was lost
    return hf.told(told)


def settle(state: Mapping[str, Tensor], full: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors tell once the image's size is given: 16 rows are 4 x 4 patches, or 3 x 5 and a token."""
    positions, patch = state.get("pos_embed"), full.get("patch_size")
    if "image_size" not in given or "pos_prefix" in given or positions is None or positions.ndim != 3 or patch is None:
        return full
    try:
        patches = prod(side // length for side, length in zip(full["image_size"], patch))
    except (TypeError, ZeroDivisionError):
        return full  # `ViTConfig` says what is wrong with them
    return {**full, "pos_prefix": positions.shape[1] != patches}


def needed(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What must come from elsewhere: of CLIP's image towers activation and eps too, which are not the usual ones."""
    return (*NEEDED, "act", "eps") if _any(state, "norm_pre.") else NEEDED


def _any(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs are gated: their first layer is twice as wide as what their second one takes."""
    first, width = hf.commonest(state, _BLOCK + r"mlp\.(?:fc1|w12)\.(?:weight|bias)"), _width(state)
    # counted, not read off one axis: a transposed one must not decide
    second = [tensor.numel() for name, tensor in state.items() if fullmatch(_BLOCK + r"mlp\.(?:fc2|w3)\.weight", name)]
    return bool(second) and (first or 0) * (width or 0) == 2 * max(set(second), key=second.count)


def _rule(state: Mapping[str, Tensor]) -> str | None:
    """How Facebook's own DINOv2 resizes the table: by a scale with an offset; with registers to the size, as timm."""
    own = "mask_token" in state or any(fullmatch(_PATTERNS[2], name) for name in state)
    return "timm" if "register_tokens" in state else "dinov2" if own else None


def _grid(state: Mapping[str, Tensor], others: int) -> dict[str, Any]:
    """class_token, pos_prefix and sizes of a square grid out of patch projection and position table.

    Args:
        others: number of tokens beside [class] and patches.
    """
    told: dict[str, Any] = {"class_token": True} if "cls_token" in state else {}
    patch, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patch is not None and patch.ndim == 4:
        told.update(in_channels=patch.shape[1], patch_size=tuple(patch.shape[2:]))
    if positions is None or positions.ndim != 3:
        return told
    rows = positions.shape[1]
    # Without a [class] token the rows decide: one too many, and it was lost; else it may never have been there.
    for prefix in (0, others + ("cls_token" in state), others + 1):
        side = isqrt(max(rows - prefix, 0))
        if side and side * side == rows - prefix:
            told["pos_prefix"] = prefix > 0
            if prefix > others:
                told["class_token"] = True
            if "patch_size" in told:
                told["image_size"] = tuple(side * length for length in told["patch_size"])
            break
    return told


def table(state: Mapping[str, Tensor]) -> tuple[Rule, ...]:
    """The names of these tensors in ours; where a tensor has two, the one this file uses comes first."""
    used = [rules for rules, pattern in zip(_FACEBOOK, _PATTERNS) if any(fullmatch(pattern, name) for name in state)]
    unused = [rules for rules in _FACEBOOK if rules not in used]
    return (*(rule for rules in used for rule in rules), *TABLE, *(_GATED if _gated(state) else _MLP),
            *(rule for rules in unused for rule in rules))


# -- timm's own description --------------------------------------------------------------------------------------

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "quickgelu": "quick_gelu",
               "relu": "relu"}
POOLS = {"token": "class", "avg": "mean"}
# arguments of a timm ViT that our fields take as they are
SAME = {"num_classes": "num_classes", "in_chans": "in_channels", "img_size": "image_size", "patch_size": "patch_size",
        "embed_dim": "width", "depth": "depth", "num_heads": "num_heads", "qkv_bias": "qkv_bias",
        "class_token": "class_token", "reg_tokens": "registers"}
# those that are translated, those that must be as here, and those that weights do not depend on
OTHERS = ("global_pool", "fc_norm", "no_embed_class", "init_values", "pre_norm", "act_layer", "mlp_ratio")
USUAL = {"qk_norm": False, "scale_attn_norm": False, "scale_mlp_norm": False, "proj_bias": True, "pos_embed": "learn",
         "final_norm": True, "pool_include_prefix": False, "norm_layer": None, "embed_norm_layer": None,
         "attn_layer": "attn"}
HARMLESS = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
            "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size")


def describe(config: Mapping[str, Any]) -> Described | None:
    """Our fields, preprocessing and class names out of timm's own description.

    Args:
        config: its hub ``config.json``, or the ``pretrained_cfg`` of one of its models.

    Returns:
        None if this is no such description.

    Raises:
        InputError: the architecture is not one of `PRESETS`, or changed in a way that has no field here.
    """
    if "architecture" not in config:
        return None
    cfg = config.get("pretrained_cfg") or config  # a pretrained_cfg is flat
    arguments = {**(config.get("model_args") or {}),
                 **{key: config[key] for key in ("num_classes", "global_pool") if key in config}}
    arguments = {key: value for key, value in arguments.items() if value is not None and value != USUAL.get(key)}
    known = {*SAME, *OTHERS, *HARMLESS}
    if strange := [f"{key}={value!r}" for key, value in arguments.items() if key not in known]:
        raise InputError(f"config: model_args {some(strange)} have no field here; known are: {some(sorted(known), 40)}")
    preset = _of_architecture(str(config["architecture"]), cfg.get("tag"))
    told = _fields(preset, arguments)
    if "input_size" in cfg:
        channels, *size = cfg["input_size"]
        told.update({} if "img_size" in arguments else {"image_size": tuple(size)})
        told.update({} if "in_chans" in arguments else {"in_channels": channels})
    photos = _preprocessing(preset, cfg, told["image_size"]) if told["in_channels"] == 3 else None
    names = config.get("label_names", cfg.get("label_names"))
    return Described(told, photos,
                     tuple(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) else None)


def _of_architecture(name: str, tag: str | None) -> Preset:
    """The preset of a tag where there is one, else of the architecture."""
    known = next((known for known in (f"{name}.{tag}", name) if ALIASES.get(known, known) in PRESETS), None)
    preset = PRESETS[ALIASES.get(known, known)] if known else None
    if preset is None or "timm" not in preset.families:
        raise InputError(f"architecture {name!r} is not among the presets: give our own fields as config")
    return preset


def _fields(preset: Preset, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an architecture, some of its arguments changed."""
    told = asdict(preset.config)
    for field in ("dropout", "attn_dropout", "stem", "num_classes"):
        del told[field]
    told.update((SAME[key], value) for key, value in arguments.items() if key in SAME)
    for side in ("image_size", "patch_size"):
        told[side] = hf.pair(told[side])
    if {"embed_dim", "mlp_ratio"} & set(arguments):
        del told["mlp_dim"]  # the tensors tell it
    if "act_layer" in arguments:
        told["act"] = _word(ACTIVATIONS, arguments, "act_layer")
    if "global_pool" in arguments:
        pool = _word(POOLS, arguments, "global_pool")
        told["norm_after_pool"] = told["norm_after_pool"] if pool == told["pool"] else pool == "mean"
        told["pool"] = pool
    elif told["pool"] == "class" and "fc_norm" not in arguments:
        del told["pool"], told["norm_after_pool"]  # the tensors tell a norm after a mean
    for key, field in (("fc_norm", "norm_after_pool"), ("init_values", "layer_scale"), ("pre_norm", "pre_norm")):
        if key in arguments:
            told[field] = bool(arguments[key])
    if told.get("norm_after_pool") and told["pool"] != "mean":
        raise InputError('config: fc_norm=True is supported with global_pool="avg" only')
    told["patch_bias"] = not told["pre_norm"]
    if "no_embed_class" in arguments:
        told["pos_prefix"] = not arguments["no_embed_class"]
    elif {"class_token", "reg_tokens"} & set(arguments):
        del told["pos_prefix"]  # the tensors tell it
    if not (told["class_token"] or told["registers"]):
        told["pos_prefix"] = False
    return told


def _word(words: Mapping[str, str], arguments: Mapping[str, Any], key: str) -> str:
    """Our word for the value of an argument."""
    value = arguments[key]
    if value not in words:
        raise InputError(f"config: {key}={value!r} is not supported; known are: {some(words, 9)}")
    return words[value]


def _preprocessing(preset: Preset, cfg: Mapping[str, Any], size: tuple[int, int]) -> Preprocessing:
    """What a pretrained_cfg says of the photos, the preset where it says nothing."""
    assert preset.preprocessing is not None  # of timm's presets
    values = preset.preprocessing.resized(size).to_dict()
    values.update({key: cfg[key] for key in ("mean", "std", "crop_pct", "interpolation") if key in cfg})
    mode = cfg.get("crop_mode")
    if mode not in (None, "center", "squash"):
        raise InputError(f'config: crop_mode={mode!r} is not supported, "center" and "squash" are')
    if mode is not None or "crop_pct" in cfg:
        squash = mode == "squash" if mode else values["mode"] != "crop"
        values["mode"] = "crop" if not squash else "squash" if values["crop_pct"] == 1 else "squash_crop"
    return Preprocessing.from_dict(values)
