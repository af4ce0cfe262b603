"""Figures without global state: making one, measuring text for it, and writing it to a file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from ..errors import InputError
from ..files import atomic_path

DPI = 100
LEADING = 1.3  # lines of text, in heights


def new_figure(height: int, width: int, **options: object) -> Figure:
    """A white figure of so many pixels, on a canvas of its own.

    Args:
        height, width: pixels at `DPI`.
        **options: of `matplotlib.figure.Figure`.
    """
    hair = 1e-6  # the canvas truncates width * DPI, which may come out just below the whole number
    figure = Figure(figsize=((width + hair) / DPI, (height + hair) / DPI), dpi=DPI, facecolor="white",
                    **options)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, pixel by pixel as it was laid out; the file is whole or not there.

    Args:
        figure: any figure.
        path: a ``.png`` file.

    Raises:
        InputError: another suffix.
        OSError: the folder cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError("pictures are written as .png: name the file so", source=path)
    with atomic_path(path) as temporary:
        # not `savefig`: a user's matplotlibrc may tell that to crop the margins or to change the resolution
        FigureCanvasAgg(figure).print_png(str(temporary))


def text_width(text: str, points: float) -> float:
    """Width of one line of text in pixels."""
    return _extent(text, points)[0]


def line(points: float) -> tuple[float, float]:
    """(ascent, descent) in pixels of a line of text of this size, whatever its letters."""
    _, height, descent = _extent("\N{LATIN CAPITAL LETTER A WITH ACUTE}gp|", points)
    return height - descent, descent


def leading(points: float) -> int:
    """Pixels from line to line of text of this size."""
    return math.ceil(sum(line(points)) * LEADING)


def axes_at(figure: Figure, label: str, top: int, left: int, height: int, width: int) -> Axes:
    """New axes at a place given in pixels from the top left; `label` is what `Axes.get_label` says of them."""
    whole = figure.bbox
    return figure.add_axes((left / whole.width, 1 - (top + height) / whole.height,
                            width / whole.width, height / whole.height), label=label)


def write(figure: Figure, lines: Sequence[str], x: float, y: float, points: float, **style: str) -> None:
    """Lines of text; (x, y) in pixels from the top left is where the first one begins."""
    first = y + line(points)[0]  # baseline
    for number, text in enumerate(lines):
        # a dollar sign in a caption is a dollar sign
        figure.text(x / figure.bbox.width, 1 - (first + number * leading(points)) / figure.bbox.height, text,
                    fontsize=points, va="baseline", parse_math=False, **style)  # type: ignore[arg-type]


def wrap(text: str, width: float, points: float) -> list[str]:
    """Lines of text, none wider than `width` pixels; a word that is wider is broken between letters.

    Args:
        text: white space separates words.
        width: pixels.
        points: size of the font.

    Returns:
        At least one line.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, points) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, points) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _extent(text: str, points: float) -> tuple[float, float, float]:
    """(width, height, descent) in pixels; the height includes the descent."""
    return _renderer().get_text_width_height_descent(text, FontProperties(size=points), ismath=False)


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(8, 8, DPI)
