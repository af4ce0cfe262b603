"""ViTs under other names than timm's: Facebook's own files, lukemelas' models, and names timm has given up. Tables."""

from __future__ import annotations

from dataclasses import replace

from ..images import Preprocessing
from .preset import INCEPTION_MEAN, INCEPTION_STD, SIZES, Preset
from .timm_presets import TIMM_PRESETS
from .vit import ViTConfig

# Facebook's files (DINO's and DINOv2's under their names in torch.hub too): timm's name of the same weights, and the
# rule by which their own code resizes the position table
_FACEBOOK = {
    "dino_deitsmall16": ("vit_small_patch16_224.dino", "dinov2"),
    "dino_vits16": ("vit_small_patch16_224.dino", "dinov2"),
    "dino_deitsmall8": ("vit_small_patch8_224.dino", "dinov2"), "dino_vits8": ("vit_small_patch8_224.dino", "dinov2"),
    "dino_vitbase16": ("vit_base_patch16_224.dino", "dinov2"), "dino_vitb16": ("vit_base_patch16_224.dino", "dinov2"),
    "dino_vitbase8": ("vit_base_patch8_224.dino", "dinov2"), "dino_vitb8": ("vit_base_patch8_224.dino", "dinov2"),
    "dinov2_vits14": ("vit_small_patch14_dinov2", "dinov2"),
    "dinov2_vits14_reg": ("vit_small_patch14_reg4_dinov2", "timm"),
    "dinov2_vitb14": ("vit_base_patch14_dinov2", "dinov2"),
    "dinov2_vitb14_reg": ("vit_base_patch14_reg4_dinov2", "timm"),
    "dinov2_vitl14": ("vit_large_patch14_dinov2", "dinov2"),
    "dinov2_vitl14_reg": ("vit_large_patch14_reg4_dinov2", "timm"),
    "dinov2_vitg14": ("vit_giant_patch14_dinov2", "dinov2"),
    "dinov2_vitg14_reg": ("vit_giant_patch14_reg4_dinov2", "timm"),
    "mae_pretrain_vit_base": ("vit_base_patch16_224.mae", "timm"),
    "mae_pretrain_vit_large": ("vit_large_patch16_224.mae", "timm"),
    "mae_pretrain_vit_huge": ("vit_huge_patch14_224.mae", "timm"),
}
_FACEBOOK |= {
    f"deit_3_{size}_{side}_{data}": (f"deit3_{size}_patch{patch}_{side}.{tag}", "timm")
    for size, patch, side in (("small", 16, 224), ("small", 16, 384), ("medium", 16, 224), ("base", 16, 224),
                              ("base", 16, 384), ("large", 16, 224), ("large", 16, 384), ("huge", 14, 224))
    for data, tag in (("1k", "fb_in1k"), ("21k", "fb_in22k_ft_in1k"))}

# name in PyTorch-Pretrained-ViT: size, patch side, image side, classes
_LUKEMELAS = {
    "B_16": ("base", 16, 224, 21843), "B_16_imagenet1k": ("base", 16, 384, 1000),
    "B_32": ("base", 32, 224, 21843), "B_32_imagenet1k": ("base", 32, 384, 1000),
    "L_16": ("large", 16, 224, 21843), "L_16_imagenet1k": ("large", 16, 384, 1000),
    "L_32": ("large", 32, 224, 21843), "L_32_imagenet1k": ("large", 32, 384, 1000),
}

OTHER_PRESETS: dict[str, Preset] = {
    name: replace(TIMM_PRESETS[timm], config=replace(config, resize=resize))
    for name, (timm, resize) in _FACEBOOK.items() if isinstance(config := TIMM_PRESETS[timm].config, ViTConfig)}
OTHER_PRESETS |= {
    name: Preset(ViTConfig((side, side), (patch, patch), *SIZES[size], num_classes=classes, resize="lukemelas"),
                 Preprocessing((side, side), INCEPTION_MEAN, INCEPTION_STD, 1.0, "squash", "bilinear"), ("lukemelas",))
    for name, (size, patch, side, classes) in _LUKEMELAS.items()}

# old names under which weights are still asked for, as timm resolves them
ALIASES: dict[str, str] = {
    "vit_tiny_patch16_224_in21k": "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch32_224_in21k": "vit_small_patch32_224.augreg_in21k",
    "vit_small_patch16_224_in21k": "vit_small_patch16_224.augreg_in21k",
    "vit_base_patch32_224_in21k": "vit_base_patch32_224.augreg_in21k",
    "vit_base_patch16_224_in21k": "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch8_224_in21k": "vit_base_patch8_224.augreg_in21k",
    "vit_large_patch32_224_in21k": "vit_large_patch32_224.orig_in21k",
    "vit_large_patch16_224_in21k": "vit_large_patch16_224.augreg_in21k",
    "vit_huge_patch14_224_in21k": "vit_huge_patch14_224.orig_in21k",
    "vit_base_patch32_224_sam": "vit_base_patch32_224.sam_in1k",
    "vit_base_patch16_224_sam": "vit_base_patch16_224.sam_in1k",
    "vit_small_patch16_224_dino": "vit_small_patch16_224.dino",
    "vit_small_patch8_224_dino": "vit_small_patch8_224.dino",
    "vit_base_patch16_224_dino": "vit_base_patch16_224.dino",
    "vit_base_patch8_224_dino": "vit_base_patch8_224.dino",
    "vit_base_patch16_224_miil_in21k": "vit_base_patch16_224_miil.in21k",
    "vit_base_patch32_224_clip_laion2b": "vit_base_patch32_clip_224.laion2b",
    "vit_large_patch14_224_clip_laion2b": "vit_large_patch14_clip_224.laion2b",
    "vit_huge_patch14_224_clip_laion2b": "vit_huge_patch14_clip_224.laion2b",
    "vit_giant_patch14_224_clip_laion2b": "vit_giant_patch14_clip_224.laion2b",
    "deit3_small_patch16_224_in21ft1k": "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit3_small_patch16_384_in21ft1k": "deit3_small_patch16_384.fb_in22k_ft_in1k",
    "deit3_medium_patch16_224_in21ft1k": "deit3_medium_patch16_224.fb_in22k_ft_in1k",
    "deit3_base_patch16_224_in21ft1k": "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "deit3_base_patch16_384_in21ft1k": "deit3_base_patch16_384.fb_in22k_ft_in1k",
    "deit3_large_patch16_224_in21ft1k": "deit3_large_patch16_224.fb_in22k_ft_in1k",
    "deit3_large_patch16_384_in21ft1k": "deit3_large_patch16_384.fb_in22k_ft_in1k",
    "deit3_huge_patch14_224_in21ft1k": "deit3_huge_patch14_224.fb_in22k_ft_in1k",
}
