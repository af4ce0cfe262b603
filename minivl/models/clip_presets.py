"""CLIP as OpenAI, open_clip and LAION publish it: sizes, activations and preprocessing. Tables, no code."""

from __future__ import annotations

from dataclasses import replace

from ..images import Preprocessing
from .clip import CLIPConfig, TextConfig
from .preset import INCEPTION_MEAN, INCEPTION_STD, OPENAI_MEAN, OPENAI_STD, SIZES, Preset
from .vit import ViTConfig

PREPROCESSING = Preprocessing((224, 224), OPENAI_MEAN, OPENAI_STD, crop_pct=1.0)
"""OpenAI's, and open_clip's where it does not say otherwise."""

# width, depth, num_heads, mlp_dim of the text tower that goes with an image tower; its width is that of the features
_TEXTS = {"base": (512, 12, 8, 2048), "large": (768, 12, 12, 3072)}
# open_clip's name, under which the activation is GELU; with -quickgelu behind it is QuickGELU
_SIZES = {
    "ViT-B-32": ("base", 32, 224),
    "ViT-B-16": ("base", 16, 224),
    "ViT-L-14": ("large", 14, 224),
    "ViT-L-14-336": ("large", 14, 336),
}
# hub id: open_clip's name, activation, mean, std, families; transformers loads all of them
_HUB = {
    "openai/clip-vit-base-patch32": ("ViT-B-32", "quick_gelu", OPENAI_MEAN, OPENAI_STD, ("hf_clip",)),
    "openai/clip-vit-base-patch16": ("ViT-B-16", "quick_gelu", OPENAI_MEAN, OPENAI_STD, ("hf_clip",)),
    "openai/clip-vit-large-patch14": ("ViT-L-14", "quick_gelu", OPENAI_MEAN, OPENAI_STD, ("hf_clip",)),
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336", "quick_gelu", OPENAI_MEAN, OPENAI_STD, ("hf_clip",)),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ("ViT-B-32", "gelu", OPENAI_MEAN, OPENAI_STD, ("hf_clip", "clip")),
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": ("ViT-B-16", "gelu", OPENAI_MEAN, OPENAI_STD, ("hf_clip", "clip")),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K":
        ("ViT-L-14", "gelu", INCEPTION_MEAN, INCEPTION_STD, ("hf_clip", "clip")),
}


def _config(name: str, act: str, resize: str) -> CLIPConfig:
    size, patch, side = _SIZES[name]
    width = _TEXTS[size][0]
    vision = ViTConfig((side, side), (patch, patch), *SIZES[size], num_classes=width, act=act, eps=1e-5, pre_norm=True,
                       patch_bias=False, head_bias=False, resize=resize)
    return CLIPConfig(vision, TextConfig(49408, *_TEXTS[size], embed_dim=width, act=act))


CLIP_PRESETS: dict[str, Preset] = {
    name + behind: Preset(_config(name, act, "open_clip"), replace(PREPROCESSING, size=(side, side)), ("clip",))
    for name, (_, _, side) in _SIZES.items() for behind, act in (("", "gelu"), ("-quickgelu", "quick_gelu"))
}
CLIP_PRESETS |= {
    id: Preset(_config(name, act, "hf"), replace(PREPROCESSING, size=(_SIZES[name][2],) * 2, mean=mean, std=std),
               families, id)
    for id, (name, act, mean, std, families) in _HUB.items()
}

# File names that begin with a preset's name and mean another one: weights that open_clip knows by an architecture and
# a tag, and that were trained with another activation or preprocessing than the architecture's name alone says. Their
# hyphens stand for any sign.
TAGS: dict[str, str] = {
    "vit-b-32-openai": "ViT-B-32-quickgelu",
    "vit-b-32-laion400m": "ViT-B-32-quickgelu",
    "vit-b-32-metaclip": "ViT-B-32-quickgelu",
    "vit-b-16-openai": "ViT-B-16-quickgelu",
    "vit-b-16-metaclip": "ViT-B-16-quickgelu",
    "vit-b-16-dfn2b": "ViT-B-16-quickgelu",
    "vit-l-14-openai": "ViT-L-14-quickgelu",
    "vit-l-14-metaclip": "ViT-L-14-quickgelu",
    "vit-l-14-dfn2b": "ViT-L-14-quickgelu",
    "vit-l-14-dfn2b-s39b": "ViT-L-14",
    "vit-l-14-laion2b": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    "vit-l-14-336-openai": "ViT-L-14-336-quickgelu",
    "vit-l-14-336px": "ViT-L-14-336-quickgelu",  # only OpenAI calls it so
}
