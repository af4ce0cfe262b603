"""Small random models for tests: every parameter random, so that a wrong wire shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.decoder import CaptionDecoder, DecoderConfig, Memory
from minivl.models.vit import ViTConfig

ENCODER = ViTConfig((12, 8), (4, 4), 24, 2, 3, 40, num_classes=0)  # 3 x 2 patches, 7 tokens
SIZES = {"vocab_size": 11, "width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 48, "max_len": 12}


def randomise(model: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Draw every parameter anew, those of norms around 1 and 0, biases too; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if id(parameter) in norms:
                parameter.add_(1.0)
    return model.eval()


def decoder(seed: int = 0, scale: float = 0.2, **changes: Any) -> CaptionDecoder:
    """A random decoder of 11 words, 32 wide, 3 deep."""
    model = CaptionDecoder(DecoderConfig(**{**SIZES, "depth": 3, **changes}))
    randomise(model, seed, scale)
    return model


def memory(images: int = 2, width: int = 32, tokens: int = 7, seed: int = 1) -> Memory:
    """Random visual tokens of that many images."""
    drawn = torch.randn(images, tokens, width, generator=torch.Generator().manual_seed(seed))
    return Memory(drawn, None, None, 1, (3, 2))


def captioner(seed: int = 0, scale: float = 0.2, **changes: Any) -> Captioner:
    """A random captioner over pictures of 12 x 8 pixels."""
    model = Captioner(CaptionerConfig(ENCODER, DecoderConfig(**{**SIZES, **changes})))
    randomise(model, seed, scale)
    return model


def pictures(count: int = 2, seed: int = 2) -> torch.Tensor:
    """Random pictures (count, 3, 12, 8)."""
    return torch.randn(count, 3, 12, 8, generator=torch.Generator().manual_seed(seed))


def texts(rows: int, length: int, vocabulary: int = 11, seed: int = 3) -> torch.Tensor:
    """Random ids (rows, length)."""
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))
