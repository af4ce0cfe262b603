"""Patch tokens and sinusoids against loops over their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minivl.errors import InputError
from minivl.models.vit import ViT, ViTConfig
from minivl.nn.embed import ConvStem, PatchEmbed, sinusoids


@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 4), (1, 2)])
def test_patches_are_projected_row_by_row(height: int, width: int) -> None:
    torch.manual_seed(40)
    embed, images = PatchEmbed((height, width), 3, 11), torch.randn(2, 3, 4 * height, 2 * width)
    torch.nn.init.normal_(embed.proj.bias)
    tokens = embed(images)
    assert tokens.shape == (2, 8, 11)
    matrix = embed.proj.weight.flatten(1)  # (D, C * height * width)
    for i in range(4):
        for j in range(2):
            patch = images[:, :, i * height: (i + 1) * height, j * width: (j + 1) * width]
            torch.testing.assert_close(tokens[:, i * 2 + j], patch.flatten(1) @ matrix.T + embed.proj.bias,
                                       rtol=1e-5, atol=1e-5)


def test_the_bias_of_the_patch_projection_is_a_choice() -> None:
    assert PatchEmbed((2, 2), 1, 4, bias=False).proj.bias is None


@pytest.mark.parametrize(("length", "width"), [(9, 8), (50, 6), (4, 7), (1, 2)])
def test_sinusoids_are_their_formula(length: int, width: int) -> None:
    table = sinusoids(length, width)
    assert table.shape == (length, width) and table.dtype == torch.float32
    for t in range(length):
        for column in range(width):
            angle = t / 10000 ** (column // 2 * 2 / width)
            wave = math.cos(angle) if column % 2 else math.sin(angle)
            assert float(table[t, column]) == pytest.approx(wave, abs=2e-5)


@pytest.mark.parametrize(("channels", "halvings", "side"), [((6,), 1, 2), ((4, 6, 8), 2, 4), ((4, 6, 8, 8), 3, 8)])
def test_conv_stem_is_its_convolutions(channels: tuple[int, ...], halvings: int, side: int) -> None:
    torch.manual_seed(0)
    stem = ConvStem(channels, halvings, 3, 10).eval()
    for module in stem.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 3 * side, 5 * side)
    x, (convolutions, norms) = images, ([m for m in stem.stem if isinstance(m, kind)]
                                        for kind in (nn.Conv2d, nn.BatchNorm2d))
    for place, (convolution, norm) in enumerate(zip(convolutions, norms)):
        x = F.conv2d(x, convolution.weight, stride=2 if place < halvings else 1, padding=1)
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        x = ((x - norm.running_mean[:, None, None]) * scale + norm.bias[:, None, None]).clamp(min=0)
    expected = torch.einsum("bchw,dc->bhwd", x, stem.proj.weight[:, :, 0, 0]) + stem.proj.bias
    assert len(convolutions) == len(channels)
    torch.testing.assert_close(stem(images), expected.flatten(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [3, 16, (8, 4)])
def test_a_stem_cannot_make_any_patch(patch: int | tuple[int, int]) -> None:
    config = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8, "stem": (4, 4, 4)}
    with pytest.raises(InputError, match="patch_size"):
        ViTConfig((48, 48), patch, **config)  # type: ignore[arg-type]
    for wrong in ((0, 8, 8), ("a",)):
        with pytest.raises(InputError, match="stem"):
            ViTConfig((48, 48), 4, **{**config, "stem": wrong})  # type: ignore[arg-type]
    assert ViT(ViTConfig((48, 48), 4, **config)).config.grid == (12, 12)  # type: ignore[arg-type]
