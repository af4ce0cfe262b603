"""Published models by name: sizes, and the preprocessing their weights were trained with.

Tables, no code: a new size is a new line of one of the modules gathered here.
"""

from __future__ import annotations

from ..images import Preprocessing
from .captioner_presets import CAPTIONER_PRESETS
from .clip_presets import CLIP_PRESETS
from .hf_presets import HF_PRESETS
from .other_presets import ALIASES, OTHER_PRESETS
from .preset import INCEPTION_MEAN, INCEPTION_STD, Preset
from .timm_presets import TIMM_PRESETS
from .vit import ViTConfig

__all__ = ["ALIASES", "PRESETS", "Preset"]

PRESETS: dict[str, Preset] = {**TIMM_PRESETS, **OTHER_PRESETS}
# Our own size for the built-in scenes: small enough to train from scratch on a laptop.
PRESETS["scenes_patch8_96"] = Preset(
    ViTConfig((96, 96), (8, 8), 128, 2, 4, 256, num_classes=0, stem=(32, 64, 128, 128, 128)),
    Preprocessing((96, 96), INCEPTION_MEAN, INCEPTION_STD, crop_pct=1.0),
)
PRESETS |= HF_PRESETS | CLIP_PRESETS | CAPTIONER_PRESETS
