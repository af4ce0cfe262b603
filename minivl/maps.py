"""Attention on the picture: from a row of weights to a grid, and from the grid to the photo's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError
from .geometry import Geometry, Pair

MODES = ("bicubic", "bilinear", "nearest")


def to_grid(weights: Tensor, n_prefix: int, grid: Pair) -> Tensor:
    """The keys that are patches, as a grid; class, distillation and register tokens are dropped.

    Args:
        weights: (..., K), K = n_prefix + gh * gw keys.
        n_prefix: how many leading keys are no patches.
        grid: (gh, gw).

    Returns:
        (..., gh, gw), a view where possible.

    Raises:
        InputError: K is another number.
    """
    keys, expected = weights.shape[-1], n_prefix + grid[0] * grid[1]
    if keys != expected:
        raise InputError(f"weights have {keys} keys, but {n_prefix} prefix tokens and a grid of "
                         f"{grid[0]} x {grid[1]} patches make {expected}")
    return weights[..., n_prefix:].reshape(*weights.shape[:-1], *grid)


def word_rows(weights: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The look behind each word: the mean over the rows that chose its pieces.

    Args:
        weights: (..., T, K); row t is the look that chose ``ids[t + 1]``.
        spans: (start, stop) of each word: its pieces are ``ids[start:stop]``.

    Returns:
        (..., len(spans), K).

    Raises:
        InputError: a span that is empty, begins before ``ids[1]`` or goes beyond ``ids[T]``.
    """
    for start, stop in spans:
        if not 1 <= start < stop <= weights.shape[-2] + 1:
            raise InputError(f"no rows chose ids {start} to {stop - 1}: there are {weights.shape[-2]}, which "
                             f"chose ids 1 to {weights.shape[-2]}")
    if not spans:
        return weights[..., :0, :]
    return torch.stack([weights[..., start - 1:stop - 1, :].mean(-2) for start, stop in spans], dim=-2)


def upsample(grid_map: Tensor, geometry: Geometry, mode: str = "bicubic") -> Tensor:
    """A map over the cells as a map over the pixels of the source photo.

    "nearest" gives a pixel the value of the cell whose `Geometry.box` holds the pixel's centre. The smooth
    modes interpolate between the centres of the cells, where they lie in the photo, and hold the outermost
    values to the border. "bicubic" is Keys' cubic convolution (IEEE TASSP 29, 1981) with a = -0.75, the one
    of torch; where a map is nowhere negative, what swings below its smallest value is cut to that value.

    Args:
        grid_map: (..., gh, gw), any device and floating type.
        geometry: of the photo; cells that are padding have no say.
        mode: "bicubic", "bilinear" or "nearest".

    Returns:
        (..., H, W) float32 over the photo as displayed; nan where the tensor did not see the photo.

    Raises:
        InputError: another grid than the geometry's, or an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"upsample mode is {mode!r}, it must be one of {', '.join(MODES)}")
    seen = _seen(grid_map, geometry).float()
    rows, row_cells = _window_pixels(geometry, 0)
    columns, column_cells = _window_pixels(geometry, 1)
    if mode == "nearest":
        inside = seen.index_select(-2, row_cells.long().to(seen.device))
        inside = inside.index_select(-1, column_cells.long().to(seen.device))
    else:
        down = _interpolation(row_cells, seen.shape[-2], mode).to(seen.device)  # (H', gh)
        right = _interpolation(column_cells, seen.shape[-1], mode).to(seen.device)  # (W', gw)
        with torch.autocast(seen.device.type, enabled=False):
            inside = down @ seen @ right.T  # (..., H', W')
        if mode == "bicubic":
            low = seen.amin(dim=(-2, -1), keepdim=True)
            inside = torch.maximum(inside, low.where(low >= 0, -torch.inf))
    if inside.shape[-2:] == geometry.source:
        return inside
    pixels = inside.new_full((*inside.shape[:-2], *geometry.source), torch.nan)
    pixels[..., rows, columns] = inside
    return pixels


def peak(grid_map: Tensor) -> tuple[int, int]:
    """The cell of the largest value, the first in reading order where several are equal.

    Args:
        grid_map: (gh, gw).

    Returns:
        (row, column).

    Raises:
        InputError: not two-dimensional, empty, or with nan.
    """
    if grid_map.ndim != 2 or grid_map.numel() == 0:
        raise InputError(f"a map of shape {tuple(grid_map.shape)} has no peak, (gh, gw) is needed")
    if torch.isnan(grid_map).any():
        raise InputError("a map with nan has no peak; take it on the grid, before `upsample`")
    row, column = divmod(int(grid_map.argmax()), grid_map.shape[1])
    return row, column


def peak_pixel(grid_map: Tensor, geometry: Geometry) -> tuple[float, float]:
    """Where in the photo a map peaks.

    Args:
        grid_map: (gh, gw); cells that are padding have no say.
        geometry: of the photo.

    Returns:
        (y, x) in float source pixels: the centre of the box of the peak's cell. ``mask[int(y), int(x)]``
        is the pixel it falls in.

    Raises:
        InputError: another grid than the geometry's, not two-dimensional, or with nan.
    """
    row, column = peak(_seen(grid_map, geometry))
    top, left, bottom, right = geometry.box(row + geometry.cells(0)[0], column + geometry.cells(1)[0])
    return (top + bottom) / 2, (left + right) / 2


def _seen(grid_map: Tensor, geometry: Geometry) -> Tensor:
    """The valid part of a map: always a rectangle, (..., gh', gw')."""
    if tuple(grid_map.shape[-2:]) != geometry.grid:
        raise InputError(f"a map of shape {tuple(grid_map.shape)} does not end in the geometry's grid "
                         f"{geometry.grid}")
    return grid_map[..., slice(*geometry.cells(0)), slice(*geometry.cells(1))]


def _window_pixels(geometry: Geometry, axis: int) -> tuple[slice, Tensor]:
    """The source pixels along an axis whose centre the tensor sees, and where each lies among the seen cells.

    Returns:
        ``(slice of n source pixels, places (n,) float64)``; place 1.5 is the centre of the second seen cell.
    """
    source, resized, patch = geometry.source[axis], geometry.resized[axis], geometry.patch[axis]
    first, end = geometry.picture(axis)
    # Whole numbers, in units of 1 / (2 * source) tensor pixels: a centre on an edge falls to the right side.
    unit = 2 * source
    centres = (2 * torch.arange(source) + 1) * resized - geometry.crop[axis] * unit
    inside = ((centres >= first * unit) & (centres < end * unit)).nonzero().flatten()
    begin = int(inside[0]) if len(inside) else 0
    centres = centres[inside] - geometry.cells(axis)[0] * patch * unit
    return slice(begin, begin + len(inside)), centres.double() / (patch * unit)


def _interpolation(places: Tensor, cells: int, mode: str) -> Tensor:
    """Weights (n, cells) float32 of the cells in each place; taps beyond the border fall on its cell."""
    from_first_centre = places - 0.5
    left = from_first_centre.floor()
    weights = torch.zeros(len(places), cells, dtype=torch.float64)
    for tap in (0, 1) if mode == "bilinear" else (-1, 0, 1, 2):
        distance = (from_first_centre - left - tap).abs()
        weight = 1 - distance if mode == "bilinear" else _cubic(distance)
        cell = (left.long() + tap).clamp(0, cells - 1)
        weights.scatter_add_(1, cell[:, None], weight[:, None])
    return weights.float()


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance ** 2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance <= 1, near, far)
