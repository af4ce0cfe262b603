"""What a position table knows of the grid: cosine similarities of position embeddings.

Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929), figure 7 (centre): rows and columns show in them, though
the table was learned from nothing but numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry import Pair


def position_similarity(table: Tensor, n_prefix: int, grid: Pair) -> Tensor:
    """How alike the embeddings of every two patches are.

    Args:
        table: (1, n_prefix + gh*gw, D), prefix rows first, then patches row by row.
        n_prefix: rows of other tokens (class, distillation, registers); 0 for a table of patches alone.
        grid: (gh, gw).

    Returns:
        (gh, gw, gh, gw) float32 cosines, -1 to 1: ``[i, j, k, l]`` is of patch (i, j) with patch (k, l). nan where
        one of the two embeddings is zero, which has no direction.

    Raises:
        InputError: a table of another shape, or with values that are not finite.
    """
    _, patches = _directions(table, n_prefix, grid)
    return (patches @ patches.T).clamp(-1, 1).view(*grid, *grid)


def prefix_similarity(table: Tensor, n_prefix: int, grid: Pair) -> Tensor:
    """How alike the embeddings of the prefix tokens are to those of the patches.

    Args:
        table, n_prefix, grid: as in `position_similarity`.

    Returns:
        (n_prefix, gh, gw) float32 cosines, -1 to 1; nan where one of the two embeddings is zero (as that of the class
        token in MAE's tables).

    Raises:
        InputError: as `position_similarity`.
    """
    prefix, patches = _directions(table, n_prefix, grid)
    return (prefix @ patches.T).clamp(-1, 1).view(n_prefix, *grid)


def _directions(table: Tensor, n_prefix: int, grid: Pair) -> tuple[Tensor, Tensor]:
    """Prefix (n_prefix, D) and patches (gh*gw, D) of length 1 (zeros become nan), float32 on the CPU."""
    rows = n_prefix + grid[0] * grid[1]
    if n_prefix < 0 or min(grid) < 1 or table.ndim != 3 or tuple(table.shape[:2]) != (1, rows):
        raise InputError(f"position table of shape {tuple(table.shape)}: a grid of {grid[0]} x {grid[1]} after "
                         f"{n_prefix} prefix rows needs (1, {rows}, width)")
    vectors = table.detach()[0].cpu().double()  # (rows, D)
    if not vectors.isfinite().all():
        raise InputError("the position table holds values that are no numbers (nan or infinite)")
    lengths = vectors.norm(dim=1, keepdim=True)
    unit = F.normalize(vectors, dim=1).where(lengths > 0, torch.nan).float()
    return unit[:n_prefix], unit[n_prefix:]
