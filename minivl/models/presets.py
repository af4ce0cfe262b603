"""Published sizes under timm's names, and the preprocessing their weights were trained with.

Tables, no code: a new size is a new line.
"""

from __future__ import annotations

from ..images import Preprocessing
from .hf_presets import HF_PRESETS
from .preset import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, OPENAI_MEAN, OPENAI_STD, SIZES, Preset
from .vit import ViTConfig

# name: size, patch side, image side, mean, std, crop share (1.0 = the whole short side), classes
_VITS = {
    "vit_tiny_patch16_224": ("tiny", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_tiny_patch16_384": ("tiny", 16, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "vit_small_patch32_224": ("small", 32, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_small_patch32_384": ("small", 32, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "vit_small_patch16_224": ("small", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_small_patch16_384": ("small", 16, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "vit_base_patch32_224": ("base", 32, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_base_patch32_384": ("base", 32, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "vit_base_patch16_224": ("base", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_base_patch16_384": ("base", 16, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "vit_base_patch8_224": ("base", 8, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_large_patch32_224": ("large", 32, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 0),
    "vit_large_patch32_384": ("large", 32, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "vit_large_patch16_224": ("large", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 0.9, 1000),
    "vit_large_patch16_384": ("large", 16, 384, INCEPTION_MEAN, INCEPTION_STD, 1.0, 1000),
    "deit_tiny_patch16_224": ("tiny", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 1000),
    "deit_small_patch16_224": ("small", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 1000),
    "deit_base_patch16_224": ("base", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 1000),
    "deit_base_patch16_384": ("base", 16, 384, IMAGENET_MEAN, IMAGENET_STD, 1.0, 1000),
    # weights of those sizes that were trained with another preprocessing: without these lines a file named
    # after one would silently get that of the plain name, with which it begins
    "vit_small_patch16_224.dino": ("small", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 0),
    "vit_base_patch16_224.dino": ("base", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 0),
    "vit_base_patch8_224.dino": ("base", 8, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 0),
    "vit_base_patch16_224.mae": ("base", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 0),
    "vit_large_patch16_224.mae": ("large", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0.9, 0),
    "vit_base_patch16_224.bamboo": ("base", 16, 224, OPENAI_MEAN, OPENAI_STD, 1.0, 115217),
}

PRESETS: dict[str, Preset] = {
    name: Preset(
        ViTConfig((side, side), (patch, patch), *SIZES[size], num_classes=classes),
        Preprocessing((side, side), mean, std, crop_pct=crop),
    )
    for name, (size, patch, side, mean, std, crop, classes) in _VITS.items()
}
# Our own size for the built-in scenes: small enough to train from scratch on a laptop.
PRESETS["scenes_patch8_96"] = Preset(
    ViTConfig((96, 96), (8, 8), 128, 2, 4, 256, num_classes=0, stem=(32, 64, 128, 128, 128)),
    Preprocessing((96, 96), INCEPTION_MEAN, INCEPTION_STD, crop_pct=1.0),
)
PRESETS |= HF_PRESETS

# old names under which weights are still asked for
ALIASES: dict[str, str] = {}
