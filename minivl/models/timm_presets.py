"""Plain ViTs as timm publishes them. Tables, no code: a new size is a new entry, its weights are in `timm_weights`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..images import Preprocessing
from .preset import SIZES, Preset
from .timm_weights import WEIGHTS
from .vit import ViTConfig

# width, depth, num_heads, mlp_dim
_SIZES = {
    **SIZES,
    "xsmall": (256, 10, 4, 1024),
    "wee": (256, 14, 4, 1280),
    "little": (320, 14, 5, 1792),
    "small36": (384, 36, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "mediumd": (512, 20, 8, 2048),
    "betwixt": (640, 12, 10, 2560),
    "base16": (768, 12, 16, 3072),
    "so150m2": (832, 21, 13, 2176),
    "plus": (896, 12, 14, 3584),
    "so150m": (896, 18, 14, 2304),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "giant24": (1536, 40, 24, 4096),
    "giantopt": (1536, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
}

# what differs from an ordinary ViT
_DISTILLED: dict[str, Any] = {"dist_token": True}
_FLEXI = {"pos_prefix": False, "resize": "timm_npz"}
_SCALED: dict[str, Any] = {"layer_scale": True}
_DEIT3 = {"layer_scale": True, "pos_prefix": False}
_GATED = {"mlp": "swiglu"}
_CLIP = {"pre_norm": True, "patch_bias": False, "eps": 1e-5}
_QUICK = {**_CLIP, "act": "quick_gelu"}
_GAP = {"class_token": False, "pos_prefix": False, "pool": "mean", "norm_after_pool": False}
_TANH = {**_GAP, "act": "gelu_tanh"}
_LAST = {**_GAP, "norm_after_pool": True}  # the norm comes last, after the pool


def _registers(count: int) -> dict[str, Any]:
    return {"registers": count, "pos_prefix": False}


# what a group has in common; architecture: (size, patch side, image side)
_GROUPS: list[tuple[dict[str, Any], dict[str, tuple[str, int, int]]]] = [
    ({}, {
        "vit_tiny_patch16_224": ("tiny", 16, 224), "vit_tiny_patch16_384": ("tiny", 16, 384),
        "vit_small_patch32_224": ("small", 32, 224), "vit_small_patch32_384": ("small", 32, 384),
        "vit_small_patch16_224": ("small", 16, 224), "vit_small_patch16_384": ("small", 16, 384),
        "vit_small_patch8_224": ("small", 8, 224), "vit_base_patch32_224": ("base", 32, 224),
        "vit_base_patch32_384": ("base", 32, 384), "vit_base_patch16_224": ("base", 16, 224),
        "vit_base_patch16_384": ("base", 16, 384), "vit_base_patch8_224": ("base", 8, 224),
        "vit_large_patch32_224": ("large", 32, 224), "vit_large_patch32_384": ("large", 32, 384),
        "vit_large_patch16_224": ("large", 16, 224), "vit_large_patch16_384": ("large", 16, 384),
        "vit_large_patch14_224": ("large", 14, 224), "vit_huge_patch14_224": ("huge", 14, 224),
        "vit_giant_patch14_224": ("giant", 14, 224), "vit_gigantic_patch14_224": ("gigantic", 14, 224),
        "deit_tiny_patch16_224": ("tiny", 16, 224), "deit_small_patch16_224": ("small", 16, 224),
        "deit_base_patch16_224": ("base", 16, 224), "deit_base_patch16_384": ("base", 16, 384),
    }),
    (_DISTILLED, {
        "deit_tiny_distilled_patch16_224": ("tiny", 16, 224), "deit_small_distilled_patch16_224": ("small", 16, 224),
        "deit_base_distilled_patch16_224": ("base", 16, 224), "deit_base_distilled_patch16_384": ("base", 16, 384),
    }),
    (_DEIT3, {
        "deit3_small_patch16_224": ("small", 16, 224), "deit3_small_patch16_384": ("small", 16, 384),
        "deit3_medium_patch16_224": ("medium", 16, 224), "deit3_base_patch16_224": ("base", 16, 224),
        "deit3_base_patch16_384": ("base", 16, 384), "deit3_large_patch16_224": ("large", 16, 224),
        "deit3_large_patch16_384": ("large", 16, 384), "deit3_huge_patch14_224": ("huge", 14, 224),
    }),
    ({"pool": "mean"}, {
        "eva_large_patch14_196": ("large", 14, 196), "eva_large_patch14_336": ("large", 14, 336),
    }),
    (_FLEXI, {
        "flexivit_small": ("small", 16, 240), "flexivit_base": ("base", 16, 240),
        "flexivit_large": ("large", 16, 240),
    }),
    ({"qkv_bias": False}, {
        "vit_base_patch16_224_miil": ("base", 16, 224),
    }),
    (_CLIP, {
        "vit_xsmall_patch16_clip_224": ("xsmall", 16, 224), "vit_medium_patch32_clip_224": ("medium", 32, 224),
        "vit_medium_patch16_clip_224": ("medium", 16, 224), "vit_betwixt_patch32_clip_224": ("betwixt", 32, 224),
        "vit_base_patch32_clip_224": ("base", 32, 224), "vit_base_patch32_clip_256": ("base", 32, 256),
        "vit_base_patch32_clip_384": ("base", 32, 384), "vit_base_patch32_clip_448": ("base", 32, 448),
        "vit_base_patch16_clip_224": ("base", 16, 224), "vit_base_patch16_clip_384": ("base", 16, 384),
        "vit_base_patch16_plus_clip_240": ("plus", 16, 240), "vit_large_patch14_clip_224": ("large", 14, 224),
        "vit_large_patch14_clip_336": ("large", 14, 336), "vit_huge_patch14_clip_224": ("huge", 14, 224),
        "vit_huge_patch14_clip_336": ("huge", 14, 336), "vit_huge_patch14_clip_378": ("huge", 14, 378),
        "vit_giant_patch14_clip_224": ("giant", 14, 224), "vit_gigantic_patch14_clip_224": ("gigantic", 14, 224),
        "vit_gigantic_patch14_clip_378": ("gigantic", 14, 378),
    }),
    (_QUICK, {
        "vit_base_patch32_clip_quickgelu_224": ("base", 32, 224),
        "vit_base_patch16_clip_quickgelu_224": ("base", 16, 224),
        "vit_large_patch14_clip_quickgelu_224": ("large", 14, 224),
        "vit_large_patch14_clip_quickgelu_336": ("large", 14, 336),
        "vit_huge_patch14_clip_quickgelu_224": ("huge", 14, 224),
        "vit_huge_patch14_clip_quickgelu_378": ("huge", 14, 378),
        "vit_gigantic_patch14_clip_quickgelu_224": ("gigantic", 14, 224),
    }),
    (_SCALED, {
        "vit_small_patch14_dinov2": ("small", 14, 518), "vit_small_patch16_36x1_224": ("small36", 16, 224),
        "vit_base_patch14_dinov2": ("base", 14, 518), "vit_base_patch32_plus_256": ("plus", 32, 256),
        "vit_base_patch16_plus_240": ("plus", 16, 240), "vit_large_patch14_dinov2": ("large", 14, 518),
    }),
    (_SCALED | _GATED, {
        "vit_giant_patch14_dinov2": ("giant24", 14, 518),
    }),
    (_SCALED | _registers(1), {
        "vit_base_patch14_reg1_tipsv2": ("base", 14, 448), "vit_large_patch14_reg1_tipsv2": ("large", 14, 448),
        "vit_so400m_patch14_reg1_tipsv2": ("so400m", 14, 448),
    }),
    (_SCALED | _registers(4), {
        "vit_small_patch14_reg4_dinov2": ("small", 14, 518), "vit_base_patch14_reg4_dinov2": ("base", 14, 518),
        "vit_large_patch14_reg4_dinov2": ("large", 14, 518),
    }),
    (_SCALED | _GATED | _registers(1), {
        "vit_giant_patch14_reg1_tipsv2": ("giant24", 14, 448),
    }),
    (_SCALED | _GATED | _registers(4), {
        "vit_giant_patch14_reg4_dinov2": ("giant24", 14, 518),
    }),
    (_GAP, {
        "vit_base_patch16_siglip_gap_224": ("base", 16, 224), "vit_base_patch16_siglip_gap_256": ("base", 16, 256),
        "vit_base_patch16_siglip_gap_384": ("base", 16, 384), "vit_base_patch16_siglip_gap_512": ("base", 16, 512),
        "vit_base_patch16_gap_224": ("base16", 16, 224), "vit_large_patch16_siglip_gap_256": ("large", 16, 256),
        "vit_large_patch16_siglip_gap_384": ("large", 16, 384),
        "vit_so400m_patch14_siglip_gap_224": ("so400m", 14, 224),
        "vit_so400m_patch14_siglip_gap_378": ("so400m", 14, 378),
        "vit_so400m_patch14_siglip_gap_448": ("so400m", 14, 448),
        "vit_so400m_patch14_siglip_gap_896": ("so400m", 14, 896), "vit_huge_patch16_gap_448": ("huge", 16, 448),
        "vit_huge_patch14_gap_224": ("huge", 14, 224), "vit_giant_patch16_gap_224": ("giant", 16, 224),
    }),
    (_TANH, {
        "vit_base_patch32_siglip_gap_256": ("base", 32, 256), "vit_large_patch16_siglip_gap_512": ("large", 16, 512),
        "vit_so400m_patch16_siglip_gap_256": ("so400m", 16, 256),
        "vit_so400m_patch16_siglip_gap_384": ("so400m", 16, 384),
        "vit_so400m_patch16_siglip_gap_512": ("so400m", 16, 512),
        "vit_giantopt_patch16_siglip_gap_256": ("giantopt", 16, 256),
        "vit_giantopt_patch16_siglip_gap_384": ("giantopt", 16, 384),
    }),
    (_GAP | _SCALED | {"qkv_bias": False}, {
        "vit_medium_patch16_gap_240": ("medium", 16, 240), "vit_medium_patch16_gap_256": ("medium", 16, 256),
        "vit_medium_patch16_gap_384": ("medium", 16, 384), "vit_betwixt_patch16_gap_256": ("betwixt", 16, 256),
    }),
    (_GAP | {"registers": 4, "pos_prefix": True}, {
        "vit_so150m_patch16_reg4_gap_256": ("so150m", 16, 256),
        "vit_so150m_patch16_reg4_gap_384": ("so150m", 16, 384),
    }),
    (_LAST | _registers(4), {
        "vit_base_patch16_reg4_gap_256": ("base", 16, 256),
    }),
    (_LAST | _SCALED | _registers(1), {
        "vit_wee_patch16_reg1_gap_256": ("wee", 16, 256), "vit_little_patch16_reg1_gap_256": ("little", 16, 256),
        "vit_medium_patch16_reg1_gap_256": ("medium", 16, 256),
        "vit_betwixt_patch16_reg1_gap_256": ("betwixt", 16, 256),
    }),
    (_LAST | _SCALED | _registers(4), {
        "vit_little_patch16_reg4_gap_256": ("little", 16, 256),
        "vit_medium_patch16_reg4_gap_256": ("medium", 16, 256),
        "vit_mediumd_patch16_reg4_gap_256": ("mediumd", 16, 256),
        "vit_mediumd_patch16_reg4_gap_384": ("mediumd", 16, 384),
        "vit_betwixt_patch16_reg4_gap_256": ("betwixt", 16, 256),
        "vit_betwixt_patch16_reg4_gap_384": ("betwixt", 16, 384),
    }),
    (_LAST | _SCALED | {"registers": 1, "pos_prefix": True, "qkv_bias": False}, {
        "vit_so150m2_patch16_reg1_gap_256": ("so150m2", 16, 256),
        "vit_so150m2_patch16_reg1_gap_384": ("so150m2", 16, 384),
        "vit_so150m2_patch16_reg1_gap_448": ("so150m2", 16, 448),
    }),
]

# published somewhere else, or nowhere
_NOT_ON_THE_HUB = ("vit_base_patch32_clip_224.openai_ft_in12k_in1k", "vit_huge_patch14_clip_336.laion2b_ft_in1k")


def _preset(name: str, config: ViTConfig, preprocessing: Preprocessing, classes: int) -> Preset:
    """The preset of one tag."""
    _, _, tag = name.partition(".")
    google = tag.startswith(("augreg_", "orig_", "sam_")) or name.startswith("flexivit")
    absent = tag == "untrained" or tag.endswith("_ijepa") or name in _NOT_ON_THE_HUB
    return Preset(replace(config, num_classes=classes), preprocessing.resized(config.image_size),
                  ("timm", "npz") if google else ("timm",),
                  None if absent else "timm/" + name.replace("_quickgelu", ""))


_CONFIGS = {arch: ViTConfig((side, side), (patch, patch), *_SIZES[size], **features)
            for features, archs in _GROUPS for arch, (size, patch, side) in archs.items()}
_TAGGED = {f"{arch}.{tag}": _preset(f"{arch}.{tag}", _CONFIGS[arch], preprocessing, classes)
           for arch, weights in WEIGHTS.items() for preprocessing, classes, tags in weights for tag in tags.split()}
# an architecture without a tag has timm's default one, the first
TIMM_PRESETS: dict[str, Preset] = {
    **{arch: _TAGGED[f"{arch}.{WEIGHTS[arch][0][2].split()[0]}"] for arch in _CONFIGS}, **_TAGGED}
