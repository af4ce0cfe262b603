"""The best and the worst of many captions: photo, score, and where a captioner looked for each word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..errors import InputError
from ..geometry import Pair
from .figure import leading, new_figure, wrap, write
from .heat import heat_at, overlay, photo_at, scale_of
from .sheet import BAR_ROOM, GAP, LABEL, MARGIN, NARROWEST, NOTE, TITLE, draw_bar, draw_panel, fit_labels, panel_of

WIDTH = 1500              # pixels of all blocks, the colour bar not counted
PHOTO = 290 * 218         # pixels of a photo
WORD, SMALLEST = 145 * 109, 108 * 81  # pixels of a panel with heat; the smaller ones where a row then holds them all
NARROW = 300              # pixels of text beside a photo, at the least
BETWEEN = 30              # pixels between the two columns of blocks, or from block to block
HEADING = 17              # points of "best" and "worst"
MOST_WORDS = 60           # panels of a caption


class Ranked(NamedTuple):
    """A photo with its caption.

    Attributes:
        photo: as displayed, any size.
        head: what stands over the caption: place, score, name.
        caption: the sentence.
        panels: (word, heat) each, heat (h, w) over the whole photo as `plotting.sheet` takes it (at `word_size` it is
            drawn as it is); none: the photo and the sentence alone.
        note: small print under the sentence.
    """

    photo: Image.Image
    head: str
    caption: str
    panels: Sequence[tuple[str, np.ndarray]] = ()
    note: str = ""


def word_size(source: Pair, count: int) -> Pair:
    """(h, w) in pixels that each of `count` panels of words of a photo of (H, W) will have."""
    room = WIDTH - _photo_size(source, WIDTH)[1] - GAP
    for area in np.geomspace(WORD, SMALLEST, 12):
        size = panel_of(source, area)
        if count * (max(size[1], NARROWEST) + GAP) - GAP <= room:
            return size
    return panel_of(source, WORD)


def ranking_sheet(groups: Sequence[tuple[str, Sequence[Ranked]]], *, title: str | None = None,
                  subtitle: str | None = None, note: str | None = None) -> Figure:
    """Groups of captioned photos, such as the best and the worst.

    With heat they stand one under the other, all heat on one colour scale; without any, side by side.

    Args:
        groups: (heading, its photos with captions); those without any are left out.
        title, subtitle: over it all, wrapped where they are too long.
        note: small print under it.

    Returns:
        The figure. Its axes are, pair by pair, the photo (`get_label` is its head) and the panels of its words, then
        the colour bar, if there is heat.

    Raises:
        InputError: nothing to show; more than `MOST_WORDS` panels of one caption; heat that is no map or negative.
    """
    groups = [(heading, group) for heading, group in groups if group]
    listed = [one for _, group in groups for one in group]
    if not listed:
        raise InputError("a ranking needs at least one caption")
    for one in listed:
        if len(one.panels) > MOST_WORDS:
            raise InputError(f"{one.head}: {len(one.panels)} panels, at most {MOST_WORDS} are drawn of a caption")
    heats = [heat_at(heat, _word_size(one)) for one in listed for _, heat in one.panels]
    most = scale_of(heats) if heats else 0.0
    columns = 1 if heats else len(groups)
    width = (WIDTH - (columns - 1) * BETWEEN) // columns
    made = [(heading, [_Block(one, width) for one in group]) for heading, group in groups]
    if any(not np.isfinite(heat).all() for heat in heats):
        note = f"{note} · dark stripes: not seen by the model" if note else "dark stripes: not seen by the model"
    head, second, foot = (wrap(text, WIDTH, size) if text else []
                          for text, size in ((title, TITLE), (subtitle, NOTE), (note, NOTE)))
    above = MARGIN + len(head) * leading(TITLE)
    top = above + len(second) * leading(NOTE) + (12 if head or second else 0)
    tall = [leading(HEADING) + sum(block.height + BETWEEN for block in blocks) for _, blocks in made]
    under = top + (sum(tall) if columns == 1 else max(tall)) - BETWEEN
    figure = new_figure(under + (12 + len(foot) * leading(NOTE) if foot else 0) + MARGIN,
                        WIDTH + 2 * MARGIN + (BAR_ROOM if heats else 0))
    write(figure, head, MARGIN, MARGIN, TITLE)
    write(figure, second, MARGIN, above, NOTE, color="0.35")
    write(figure, foot, MARGIN, under + 12, NOTE, color="0.35")
    y, left = top, MARGIN
    for (heading, blocks), height in zip(made, tall):
        write(figure, [heading], left, y, HEADING, color="0.35")
        place = y + leading(HEADING)
        for block in blocks:
            block.draw(figure, place, left, most)
            place += block.height + BETWEEN
        y, left = (y + height, left) if columns == 1 else (y, left + width + BETWEEN)
    if heats:
        first = top + leading(HEADING)
        draw_bar(figure, most, "attention weight of a patch", first, MARGIN + WIDTH + 20, min(under - first, 420))
    return figure


def _word_size(one: Ranked) -> Pair:
    return word_size((one.photo.height, one.photo.width), len(one.panels))


def _photo_size(source: Pair, width: int) -> Pair:
    """(h, w) in pixels of a photo of (H, W) in a block so wide: a panorama leaves room for text."""
    height, wide = panel_of(source, PHOTO)
    room = width - GAP - NARROW
    return (height, wide) if wide <= room else (max(1, round(height * room / wide)), room)


class _Block:
    """One captioned photo: the photo on the left, beside it its text over the panels of its words.

    Args:
        one: what is shown.
        width: pixels it may take.

    Attributes:
        height: pixels it takes.
    """

    def __init__(self, one: Ranked, width: int) -> None:
        self._one, self._source = one, (one.photo.height, one.photo.width)
        self._photo = _photo_size(self._source, width)
        room = width - self._photo[1] - GAP
        self._texts = [(wrap(text, room, points), points, color) for text, points, color in (
            (one.head, LABEL, "0.35"), (one.caption or "(an empty caption)", TITLE, "black"), (one.note, NOTE, "0.35"))
            if text]
        self._top = sum(len(lines) * leading(points) for lines, points, _ in self._texts) + 6  # of the words
        self._word = _word_size(one)
        self._column = max(self._word[1], NARROWEST)
        most = max(1, (room + GAP) // (self._column + GAP))
        rows = -(-len(one.panels) // most)
        self._columns = -(-len(one.panels) // rows) if rows else 1  # as many in each row
        self._points, self._labels = fit_labels([label for label, _ in one.panels], self._column + GAP - 4)
        lines = max(map(len, self._labels), default=0)
        self._step = self._word[0] + lines * leading(self._points) + 4 + GAP  # from row to row
        self.height = max(self._photo[0], self._top + (rows * self._step - GAP if rows else 0))

    def draw(self, figure: Figure, top: int, left: int, most: float) -> None:
        """Draw it with its upper left corner there; `most` is the end of the colour scale."""
        one = self._one
        draw_panel(figure, one.head, photo_at(one.photo, self._photo), top, left, self._source)
        left += self._photo[1] + GAP
        y = top
        for lines, points, color in self._texts:
            write(figure, lines, left, y, points, color=color)
            y += len(lines) * leading(points)
        plain = photo_at(one.photo, self._word) if one.panels else None
        for place, ((label, heat), lines) in enumerate(zip(one.panels, self._labels)):
            assert plain is not None
            row, column = divmod(place, self._columns)
            x = left + column * (self._column + GAP)
            edge = top + self._top + (row + 1) * self._step - GAP - self._word[0]  # the panel's upper one
            write(figure, lines, x + self._column / 2, edge - 4 - len(lines) * leading(self._points), self._points,
                  ha="center")
            draw_panel(figure, label, overlay(plain, heat_at(heat, self._word), most), edge,
                       x + (self._column - self._word[1]) // 2, self._source)
