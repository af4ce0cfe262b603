"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from ..images import Preprocessing
from .captioner import CaptionerConfig
from .clip import CLIPConfig
from .vit import ViTConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INCEPTION_MEAN, INCEPTION_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# width, depth, num_heads, mlp_dim
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        config: its `ViTConfig`, `CLIPConfig` or `CaptionerConfig`.
        preprocessing: with which its weights were trained.
        families: in whose key layouts its weights are published (see `minivl.convert`).
        hub: id of its weights on the hub; None where there are none.
    """

    config: ViTConfig | CLIPConfig | CaptionerConfig
    preprocessing: Preprocessing | None
    families: tuple[str, ...] = ("timm",)
    hub: str | None = None
