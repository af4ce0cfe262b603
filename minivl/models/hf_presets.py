"""ViT, DeiT, DINO and DINOv2 as Hugging Face publishes them: sizes and preprocessing. Tables, no code."""

from __future__ import annotations

from ..images import Preprocessing
from .preset import IMAGENET_MEAN, IMAGENET_STD, INCEPTION_MEAN, INCEPTION_STD, SIZES, Preset
from .vit import ViTConfig

# hub id: size, patch side, image side, mean, std, classes
_VITS = {
    "google/vit-base-patch16-224": ("base", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 1000),
    "google/vit-base-patch16-384": ("base", 16, 384, INCEPTION_MEAN, INCEPTION_STD, 1000),
    "google/vit-base-patch32-384": ("base", 32, 384, INCEPTION_MEAN, INCEPTION_STD, 1000),
    "google/vit-large-patch16-224": ("large", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 1000),
    "google/vit-large-patch16-384": ("large", 16, 384, INCEPTION_MEAN, INCEPTION_STD, 1000),
    "google/vit-large-patch32-384": ("large", 32, 384, INCEPTION_MEAN, INCEPTION_STD, 1000),
    "google/vit-base-patch16-224-in21k": ("base", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 0),
    "google/vit-base-patch32-224-in21k": ("base", 32, 224, INCEPTION_MEAN, INCEPTION_STD, 0),
    "google/vit-large-patch16-224-in21k": ("large", 16, 224, INCEPTION_MEAN, INCEPTION_STD, 0),
    "google/vit-large-patch32-224-in21k": ("large", 32, 224, INCEPTION_MEAN, INCEPTION_STD, 0),
    "facebook/dino-vits16": ("small", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0),
    "facebook/dino-vits8": ("small", 8, 224, IMAGENET_MEAN, IMAGENET_STD, 0),
    "facebook/dino-vitb16": ("base", 16, 224, IMAGENET_MEAN, IMAGENET_STD, 0),
    "facebook/dino-vitb8": ("base", 8, 224, IMAGENET_MEAN, IMAGENET_STD, 0),
}
# hub id: size, image side, classes; with a distillation token
_DEITS = {
    "facebook/deit-tiny-distilled-patch16-224": ("tiny", 224, 1000),
    "facebook/deit-small-distilled-patch16-224": ("small", 224, 1000),
    "facebook/deit-base-distilled-patch16-224": ("base", 224, 1000),
    "facebook/deit-base-distilled-patch16-384": ("base", 384, 1000),
}
# hub id: width, depth, num_heads, mlp_dim, kind of MLP, registers, classes
_DINOV2S: dict[str, tuple[int, int, int, int, str, int, int]] = {
    "facebook/dinov2-small": (384, 12, 6, 1536, "mlp", 0, 0),
    "facebook/dinov2-base": (768, 12, 12, 3072, "mlp", 0, 0),
    "facebook/dinov2-large": (1024, 24, 16, 4096, "mlp", 0, 0),
    "facebook/dinov2-giant": (1536, 40, 24, 4096, "swiglu", 0, 0),
    "facebook/dinov2-small-imagenet1k-1-layer": (384, 12, 6, 1536, "mlp", 0, 1000),
    "facebook/dinov2-base-imagenet1k-1-layer": (768, 12, 12, 3072, "mlp", 0, 1000),
    "facebook/dinov2-large-imagenet1k-1-layer": (1024, 24, 16, 4096, "mlp", 0, 1000),
    "facebook/dinov2-giant-imagenet1k-1-layer": (1536, 40, 24, 4096, "swiglu", 0, 1000),
    "facebook/dinov2-with-registers-small": (384, 12, 6, 1536, "mlp", 4, 0),
    "facebook/dinov2-with-registers-base": (768, 12, 12, 3072, "mlp", 4, 0),
    "facebook/dinov2-with-registers-large": (1024, 24, 16, 4096, "mlp", 4, 0),
    "facebook/dinov2-with-registers-giant": (1536, 40, 24, 4096, "swiglu", 4, 0),
    "facebook/dinov2-with-registers-small-imagenet1k-1-layer": (384, 12, 6, 1536, "mlp", 4, 1000),
    "facebook/dinov2-with-registers-base-imagenet1k-1-layer": (768, 12, 12, 3072, "mlp", 4, 1000),
    "facebook/dinov2-with-registers-large-imagenet1k-1-layer": (1024, 24, 16, 4096, "mlp", 4, 1000),
    "facebook/dinov2-with-registers-giant-imagenet1k-1-layer": (1536, 40, 24, 4096, "swiglu", 4, 1000),
}

HF_PRESETS: dict[str, Preset] = {
    id: Preset(ViTConfig((side, side), (patch, patch), *SIZES[size], num_classes=classes, eps=1e-12, resize="hf"),
               Preprocessing((side, side), mean, std, crop_pct=0.875 if "dino" in id else 1.0,
                             mode="crop" if "dino" in id else "squash",
                             interpolation="bicubic" if "dino" in id else "bilinear"), ("hf_vit",), id)
    for id, (size, patch, side, mean, std, classes) in _VITS.items()
}
HF_PRESETS |= {
    id: Preset(ViTConfig((side, side), (16, 16), *SIZES[size], num_classes=classes, dist_token=True, eps=1e-12,
                         resize="hf"),
               Preprocessing((side, side), IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.875, mode="squash_crop"),
               ("hf_vit",), id)
    for id, (size, side, classes) in _DEITS.items()
}
# trained at 518 pixels, which is what their tables are for; their processor gives 224, and they are resized
HF_PRESETS |= {
    id: Preset(ViTConfig((518, 518), (14, 14), width, depth, heads, mlp_dim, num_classes=classes, mlp=mlp,
                         registers=registers,
                         pos_prefix=not registers, layer_scale=True, resize="timm" if registers else "hf",
                         pool="class+mean" if classes else "class"),
               Preprocessing((518, 518), IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.875), ("hf_dinov2",), id)
    for id, (width, depth, heads, mlp_dim, mlp, registers, classes) in _DINOV2S.items()
}
