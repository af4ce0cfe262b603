"""Sheets: one photo many times over, each panel with a label, under a title and beside one colour bar.

Everything is laid out in whole pixels, so that a panel's pixel is a pixel of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from PIL import Image

from ..errors import InputError
from ..geometry import Pair
from .figure import axes_at, leading, new_figure, text_width, wrap, write
from .heat import colours, heat_at, overlay, photo_at, scale_of

WIDTH, HEIGHT = 1500, 900  # pixels a sheet's panels may take, while they are not at their smallest
LARGEST, SMALLEST = 420 * 315, 200 * 150  # pixels of a panel
LONGEST = 640                         # a panel's longest side: of panoramas and strips
NARROWEST = 96                        # pixels of a column, so that words have room over a strip
MARGIN, GAP = 18, 14                  # around the sheet, between panels
BAR, BAR_ROOM = 16, 112               # width of the colour bar, and with its numbers and label
TITLE, LABEL, NOTE = 15, 12, 10       # points
LABELS = (LABEL, 11, 10, 9)           # tried in turn until no label of a sheet must be broken

Panel = tuple[str, np.ndarray | None]


class Grid(NamedTuple):
    """How the panels of a sheet stand.

    Attributes:
        panel: (h, w) of a panel in pixels, the photo's aspect.
        columns: of the grid.
        rows: of the grid.
    """

    panel: Pair
    columns: int
    rows: int

    @property
    def column(self) -> int:
        """Width of a column in pixels."""
        return max(self.panel[1], NARROWEST)


def grid_of(source: Pair, count: int) -> Grid:
    """The largest panels with which `count` of them fit on a sheet.

    Args:
        source: (H, W) of the photo.
        count: panels.
    """
    label = leading(LABEL)
    for area in np.geomspace(LARGEST, SMALLEST, 24):
        panel = panel_of(source, area)
        column = max(panel[1], NARROWEST)
        columns = max(1, min(count, (WIDTH - BAR_ROOM + GAP) // (column + GAP)))
        rows = -(-count // columns)
        grid = Grid(panel, -(-count // rows), rows)
        if rows * (panel[0] + label + GAP) <= HEIGHT:
            break
    return grid


def panel_size(source: Pair, count: int) -> Pair:
    """(h, w) in pixels that each of `count` panels of a photo of (H, W) will have on its sheet.

    Maps made at this size, by `upsample` through a geometry whose source was replaced by it, are drawn
    as they are: the same places of the photo, without the cost of its full resolution.
    """
    return grid_of(source, count).panel


def sheet(photo: Image.Image, panels: Sequence[Panel], *, title: str | None = None,
          subtitle: str | None = None, bar: str = "attention weight", note: str | None = None) -> Figure:
    """A photo once per panel, with heat on it, all on one colour scale.

    Args:
        photo: as displayed, any size.
        panels: (label, heat) each; heat is (h, w) over the whole photo at any resolution, not negative,
            nan where the model did not see the photo; None: the photo alone.
        title, subtitle: over the panels, wrapped where they are too long.
        bar: what the colour bar says.
        note: small print under the panels.

    Returns:
        The figure. Its axes are the panels, in order and labelled so (`get_label`), then the colour bar, if
        any panel has heat.

    Raises:
        InputError: no panels, or heat that is no map or negative.
    """
    if not panels:
        raise InputError("a sheet needs at least one panel")
    source = (photo.height, photo.width)
    grid = grid_of(source, len(panels))
    heats = [None if heat is None else heat_at(heat, grid.panel) for _, heat in panels]
    there = [heat for heat in heats if heat is not None]
    if any(not np.isfinite(heat).all() for heat in there):
        note = f"{note} · " if note else ""
        note += "dark stripes: not seen by the model"
    points, labels = fit_labels([label for label, _ in panels], grid.column + GAP - 4)
    step = grid.panel[0] + max(map(len, labels)) * leading(points) + 4 + GAP  # from row to row
    inner = max(grid.columns * (grid.column + GAP) - GAP + (BAR_ROOM if there else 0), 420)
    head, second, foot = (wrap(text, inner, size) if text else []
                          for text, size in ((title, TITLE), (subtitle, LABEL), (note, NOTE)))
    above = MARGIN + len(head) * leading(TITLE)  # the end of the title
    top = above + len(second) * leading(LABEL) + (8 if head or second else 0)
    under = top + grid.rows * step - GAP
    height = under + (10 + len(foot) * leading(NOTE) if foot else 0) + MARGIN
    figure = new_figure(height, inner + 2 * MARGIN)
    write(figure, head, MARGIN, MARGIN, TITLE)
    write(figure, second, MARGIN, above, LABEL, color="0.35")
    write(figure, foot, MARGIN, under + 10, NOTE, color="0.35")
    most = scale_of(there)
    plain = photo_at(photo, grid.panel)
    for place, ((label, _), lines, heat) in enumerate(zip(panels, labels, heats)):
        row, column = divmod(place, grid.columns)
        left = MARGIN + column * (grid.column + GAP)
        edge = top + (row + 1) * step - GAP - grid.panel[0]  # the panel's upper one
        write(figure, lines, left + grid.column / 2, edge - 4 - len(lines) * leading(points), points,
              ha="center")
        pixels = plain if heat is None else overlay(plain, heat, most)
        draw_panel(figure, label, pixels, edge, left + (grid.column - grid.panel[1]) // 2, source)
    if there:
        first = top + step - GAP - grid.panel[0]
        left = MARGIN + grid.columns * (grid.column + GAP) - GAP + 20
        draw_bar(figure, most, bar, first, left, min(under - first, 420))
    return figure


def panel_of(source: Pair, area: float) -> Pair:
    """(h, w) in pixels of a panel of about that area with the aspect of a photo of (H, W)."""
    factor = min(math.sqrt(area / (source[0] * source[1])), LONGEST / max(source))
    return max(1, round(source[0] * factor)), max(1, round(source[1] * factor))


def fit_labels(labels: Sequence[str], width: float) -> tuple[float, list[list[str]]]:
    """The size of the font and the lines of each label, of which none is wider than `width` pixels."""
    for points in LABELS:
        if all(text_width(label, points) <= width for label in labels):
            return points, [[label] for label in labels]
    return points, [wrap(label, width, points) for label in labels]


def draw_panel(figure: Figure, label: str, pixels: np.ndarray, top: int, left: int, source: Pair) -> None:
    """Axes in coordinates of the photo, that show pixels one to one."""
    axes = axes_at(figure, label, top, left, *pixels.shape[:2])
    axes.imshow(pixels, extent=(0, source[1], source[0], 0), aspect="auto", interpolation="nearest")
    axes.set_axis_off()


def draw_bar(figure: Figure, most: float, label: str, top: int, left: int, height: int) -> None:
    """The colour bar of heat from 0 to `most`, `BAR` pixels wide; its numbers need `BAR_ROOM` from the panels on."""
    axes = axes_at(figure, "colour bar", top, left, height, BAR)
    bar = figure.colorbar(colours(most), cax=axes)
    bar.locator, bar.formatter = MaxNLocator(max(2, height // 60)), ScalarFormatter()
    bar.formatter.set_powerlimits((-3, 4))  # "0.5" and "1e-3" above the bar need less room than 0.00050
    bar.update_ticks()
    axes.tick_params(labelsize=NOTE)
    axes.yaxis.set_offset_position("left")  # from the bar's left edge on, clear of the last panel's label
    axes.yaxis.get_offset_text().set_fontsize(NOTE)
    bar.set_label("\n".join(wrap(label, height, NOTE)), fontsize=NOTE)
