"""Patch tokens and sinusoids against loops over their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from minivl.nn.embed import PatchEmbed, sinusoids


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
