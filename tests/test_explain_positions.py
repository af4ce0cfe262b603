"""Similarities of position embeddings: against numpy, by hand, and of tables with a pattern that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from minivl.errors import InputError
from minivl.explain.positions import position_similarity, prefix_similarity


def table(rows: int, width: int = 5, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(1, rows, width, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.linspace(0.1, 9, rows)[None, :, None]  # of all lengths


@pytest.mark.parametrize("grid", [(3, 4), (1, 7), (5, 2), (1, 1)])
@pytest.mark.parametrize("n_prefix", [0, 1, 6])
def test_against_numpy(grid: tuple[int, int], n_prefix: int) -> None:
    given = table(n_prefix + grid[0] * grid[1])
    found, prefix = position_similarity(given, n_prefix, grid), prefix_similarity(given, n_prefix, grid)
    assert found.shape == (*grid, *grid) and prefix.shape == (n_prefix, *grid) and found.dtype == torch.float32
    rows = given[0].double().numpy()
    cosines = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    for i in range(grid[0]):
        for j in range(grid[1]):
            place = n_prefix + i * grid[1] + j
            np.testing.assert_allclose(found[i, j].flatten(), cosines[place, n_prefix:], atol=1e-6)
            np.testing.assert_allclose(prefix[:, i, j], cosines[:n_prefix, place], atol=1e-6)
    assert found.abs().max() <= 1


def test_by_hand() -> None:
    """Two patches side by side at 60 degrees, of lengths 2 and 5, and a third opposite to the first."""
    given = torch.tensor([[[0.0, 7.0], [2.0, 0.0], [2.5, 2.5 * math.sqrt(3)], [-1.0, 0.0]]])
    expected = torch.tensor([[[[1.0, 0.5, -1.0]], [[0.5, 1.0, -0.5]], [[-1.0, -0.5, 1.0]]]])
    torch.testing.assert_close(position_similarity(given, 1, (1, 3)), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(prefix_similarity(given, 1, (1, 3)),
                               torch.tensor([[[0.0, math.sqrt(3) / 2, 0.0]]]), atol=1e-6, rtol=0)


def test_rows_and_columns_are_not_exchanged() -> None:
    """Embeddings that tell the row alone are alike along rows."""
    rows = torch.eye(3).repeat_interleave(4, 0)[None]  # (1, 3*4, 3)
    found = position_similarity(rows, 0, (3, 4))
    for i in range(3):
        expected = torch.zeros(3, 4)
        expected[i] = 1
        assert all(torch.equal(found[i, j], expected) for j in range(4))


def test_half_precision_is_computed_in_full() -> None:
    given = table(9).bfloat16()
    torch.testing.assert_close(position_similarity(given, 0, (3, 3)), position_similarity(given.float(), 0, (3, 3)))


def test_zeros_have_no_direction() -> None:
    given = table(7)
    given[0, 0] = given[0, 3] = 0
    found, prefix = position_similarity(given, 1, (2, 3)), prefix_similarity(given, 1, (2, 3))
    assert prefix.isnan().all()
    unknown = torch.zeros(2, 3, 2, 3, dtype=torch.bool)
    unknown[0, 2] = unknown[:, :, 0, 2] = True
    assert torch.equal(found.isnan(), unknown)


@pytest.mark.parametrize("shape, n_prefix, grid, told", [
    ((1, 12, 5), 1, (3, 4), r"of shape \(1, 12, 5\): a grid of 3 x 4 after 1 prefix rows needs \(1, 13, width\)"),
    ((2, 12, 5), 0, (3, 4), "needs"), ((12, 5), 0, (3, 4), "needs"), ((1, 0, 5), 0, (0, 4), "needs"),
    ((1, 11, 5), -1, (3, 4), "needs")])
def test_refused(shape: tuple[int, ...], n_prefix: int, grid: tuple[int, int], told: str) -> None:
    for similarity in (position_similarity, prefix_similarity):
        with pytest.raises(InputError, match=told):
            similarity(torch.ones(shape), n_prefix, grid)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damaged_tables_are_refused(value: float) -> None:
    given = table(4)
    given[0, 2, 1] = value
    with pytest.raises(InputError, match="nan or infinite"):
        position_similarity(given, 0, (2, 2))
