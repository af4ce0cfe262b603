"""Similarities of position embeddings as a grid of grids."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..errors import InputError
from .figure import axes_at, leading, new_figure, wrap, write
from .sheet import BAR, BAR_ROOM, LABEL, MARGIN, NOTE, TITLE

COLOURS = colormaps["viridis"]  # perceptually uniform, and nowhere white as the gaps between the maps
UNKNOWN = (0.6, 0.6, 0.6)  # of an embedding of zeros
MOST = 14             # maps along a side
ROOM = 1100           # pixels that the maps of a side should not exceed
LARGEST = 200         # pixels of a map's longest side, where its cells are more than one pixel
GAP = 4               # between maps
LEFT, BELOW = 64, 52  # pixels for numbers and names of the axes
SHORTEST = 150        # height in pixels that the colour bar and the name of the vertical axis need


def positions_plot(similarity: np.ndarray, *, title: str | None = None, note: str | None = None) -> Figure:
    """One small map per patch: how alike its embedding is to that of every patch, arranged as the patches are.

    Of a large grid every second, third ... row or column of maps is drawn, at most `MOST`; the small print says so.

    Args:
        similarity: (gh, gw, gh, gw) cosines, -1 to 1, as `minivl.explain.positions.position_similarity` gives them;
            nan is drawn grey.
        title: over the maps, wrapped where it is too long.
        note: small print under them.

    Returns:
        The figure. Its axes are "positions", all maps in one picture whose pixels are those of the file, and
        "colour bar".

    Raises:
        InputError: another shape.
    """
    similarity = np.asarray(similarity, dtype=np.float32)
    grid = similarity.shape[:2]
    if similarity.ndim != 4 or similarity.shape[2:] != grid or not similarity.size:
        raise InputError(f"similarities of shape {similarity.shape}: (rows, columns, rows, columns) are needed")
    places = [_thinned(side) for side in grid]
    cell = _cell(grid, max(map(len, places)))
    maps = similarity[places[0]][:, places[1]].repeat(cell, 2).repeat(cell, 3)  # (rows, columns, h, w)
    pixels = _picture(maps)
    height, width = pixels.shape[:2]
    told = [f"each map: the patch of that row and column with all {grid[0]} x {grid[1]} patches"]
    steps = zip(("row", "column"), map(_step, grid))
    if left := [f"every {_ordinal(step)} {what}" for what, step in steps if step > 1]:
        told.append(f"of the maps {' and '.join(left)} is shown")
    if np.isnan(maps).any():
        told.append("grey: an embedding of zeros, which has no direction")
    told += [note] if note else []
    inner = max(LEFT + width + BAR_ROOM, 420)
    head, foot = wrap(title, inner, TITLE) if title else [], wrap(" · ".join(told), inner, NOTE)
    top = MARGIN + len(head) * leading(TITLE) + (8 if head else 0)
    room = max(height, SHORTEST)
    under = top + room + BELOW
    figure = new_figure(under + len(foot) * leading(NOTE) + MARGIN, inner + 2 * MARGIN)
    write(figure, head, MARGIN, MARGIN, TITLE)
    write(figure, foot, MARGIN, under, NOTE, color="0.35")
    _maps(figure, pixels, top + (room - height) // 2, places, cell * np.array(grid) + GAP)
    _bar(figure, top, MARGIN + LEFT + width + 20, min(room, 420))
    return figure


def _step(side: int) -> int:
    return -(-side // MOST)


def _thinned(side: int) -> np.ndarray:
    """The rows or columns whose maps are drawn: evenly spaced, as far from the one border as from the other."""
    step = _step(side)
    return np.arange((side - 1) % step // 2, side, step)


def _cell(grid: tuple[int, ...], maps: int) -> int:
    """Pixels of a side of a patch, in every map."""
    return max(1, min(ROOM // maps - GAP, LARGEST) // max(grid))


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _picture(maps: np.ndarray) -> np.ndarray:
    """Maps (rows, columns, h, w) side by side, with gaps: (H, W, 3) uint8."""
    rows, columns, height, width = maps.shape
    colours = COLOURS((np.nan_to_num(maps) + 1) / 2)[..., :3]
    colours[np.isnan(maps)] = UNKNOWN
    picture = np.ones((rows, height + GAP, columns, width + GAP, 3))
    picture[:, :height, :, :width] = colours.transpose(0, 2, 1, 3, 4)
    picture = picture.reshape(rows * (height + GAP), columns * (width + GAP), 3)[:-GAP, :-GAP]
    return (picture * 255).round().astype(np.uint8)


def _maps(figure: Figure, pixels: np.ndarray, top: int, places: list[np.ndarray], steps: np.ndarray) -> None:
    """The picture of all maps, with the numbers of the patches they are of; steps: pixels from map to map."""
    height, width = pixels.shape[:2]
    axes = axes_at(figure, "positions", top, MARGIN + LEFT, height, width)
    axes.imshow(pixels, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    for axis, numbers, step, needed in ((axes.yaxis, places[0], steps[0], 15), (axes.xaxis, places[1], steps[1], 30)):
        each = -(-needed // step)  # of narrow maps not all are numbered
        middles = np.arange(len(numbers)) * step + (step - GAP) / 2
        axis.set_ticks(middles[::each], [str(number) for number in numbers[::each]])
    axes.tick_params(length=0, labelsize=NOTE)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("input patch column", fontsize=LABEL)
    axes.set_ylabel("input patch row", fontsize=LABEL)


def _bar(figure: Figure, top: int, left: int, height: int) -> None:
    axes = axes_at(figure, "colour bar", top, left, height, BAR)
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), COLOURS), cax=axes, ticks=[-1, -0.5, 0, 0.5, 1])
    axes.tick_params(labelsize=NOTE)
    bar.set_label("cosine similarity", fontsize=NOTE)
