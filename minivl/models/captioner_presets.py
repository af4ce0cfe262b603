"""Captioners as Hugging Face publishes them: sizes and preprocessing. Tables, no code."""

from __future__ import annotations

from ..images import Preprocessing
from .captioner import CaptionerConfig
from .decoder import DecoderConfig
from .preset import INCEPTION_MEAN, INCEPTION_STD, OPENAI_MEAN, OPENAI_STD, SIZES, Preset
from .vit import ViTConfig

# end of text stands for every special token of GPT-2
_GPT2 = DecoderConfig(50257, *SIZES["base"], max_len=1024, tied=True, act="gelu_tanh", dropout=0.1, attn_dropout=0.1,
                      pad_id=50256, bos_id=50256, eos_id=50256)
# [DEC] begins, [SEP] ends
_BERT = {"max_len": 512, "norm": "post", "tied": True, "eps": 1e-12, "pad_id": 0, "bos_id": 30522, "eos_id": 102,
         "embed_norm": True, "head": "transform", "head_bias": True}

CAPTIONER_PRESETS: dict[str, Preset] = {
    "nlpconnect/vit-gpt2-image-captioning": Preset(
        CaptionerConfig(ViTConfig((224, 224), (16, 16), *SIZES["base"], num_classes=0, eps=1e-12, resize="hf"), _GPT2,
                        project=False),
        Preprocessing((224, 224), INCEPTION_MEAN, INCEPTION_STD, crop_pct=1.0, mode="squash",
                      interpolation="bilinear"),
        ("vit_gpt2",), "nlpconnect/vit-gpt2-image-captioning"),
}
CAPTIONER_PRESETS |= {
    f"Salesforce/blip-image-captioning-{size}": Preset(
        CaptionerConfig(ViTConfig((384, 384), (16, 16), *SIZES[size], num_classes=0, eps=1e-5, resize="hf"),
                        DecoderConfig(30524, *SIZES["base"], memory_width=SIZES[size][0], **_BERT),  # type: ignore
                        project=False),
        Preprocessing((384, 384), OPENAI_MEAN, OPENAI_STD, crop_pct=1.0, mode="squash"),
        ("blip",), f"Salesforce/blip-image-captioning-{size}")
    for size in ("base", "large")
}
