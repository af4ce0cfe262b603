"""From pixels to patch tokens, and positions of text."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: a convolution whose stride is its kernel.

    Args:
        patch_size: (height, width) of a patch in pixels.
        in_channels: C.
        width: D.
        bias: whether the projection has one.
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, gh*gw, D), row by row of the grid."""
        return self.proj(images).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Patch tokens by a few small convolutions instead of one large (Xiao et al. 2021, "Early convolutions
    help transformers see better"): 3x3 convolutions, each with batch norm and ReLU, then 1x1.

    Learns shapes from far fewer pictures than `PatchEmbed`, so it suits training from scratch.

    Args:
        channels: of each 3x3 convolution.
        halvings: how many of them, from the first on, have stride 2; patches have 2^halvings pixels a side.
        in_channels: C.
        width: D.
    """

    def __init__(self, channels: tuple[int, ...], halvings: int, in_channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(zip((in_channels, *channels), channels)):
            stride = 2 if place < halvings else 1
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels[-1], width, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, gh*gw, D), row by row of the grid."""
        return self.proj(self.stem(images)).flatten(2).transpose(1, 2)


def sinusoids(length: int, width: int) -> Tensor:
    """Sine and cosine position table (Vaswani et al. 2017, section 3.5), interleaved.

    Returns:
        (length, width) float32: column 2i holds sin(t / 10000^(2i/width)), column 2i+1 the cosine.
    """
    t = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-torch.log(torch.tensor(1e4)) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(t * rate)
    table[:, 1::2] = torch.cos(t * rate[: width // 2])
    return table
