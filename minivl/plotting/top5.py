"""Photos beside what a classifier takes them for: bars of the best classes, the true one among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..errors import InputError
from ..geometry import Pair
from .figure import axes_at, leading, line, new_figure, text_width, wrap, write
from .heat import photo_at

MARGIN, GAP = 18, 14            # around the picture; between photo and bars
PHOTO, BARS = 210, 300          # pixels of a photo's longest side; width of the bars with their numbers
BETWEEN, UNDER = 44, 30         # pixels between cells: side by side, one under the other
BAR, STEP = 11, 12              # height of a bar, and the space under it
MOST_COLUMNS, MOST = 3, 300     # cells side by side, and of a picture
TITLE, NAME, NOTE = 15, 11, 10  # points
PREDICTED, OTHER, ROOM = "#d55e00", "#a9b7c0", "#eef1f3"


class Bar(NamedTuple):
    """One class and its share.

    Attributes:
        name: of the class, of any length.
        share: 0 to 1.
        rank: 1 is the prediction.
        true: whether it is the class of the photo.
    """

    name: str
    share: float
    rank: int
    true: bool = False


class Guess(NamedTuple):
    """A photo and what it was taken for.

    Attributes:
        photo: as displayed, any size.
        title: over it, such as its file name.
        bars: by rank, see `ranked`.
    """

    photo: Image.Image
    title: str
    bars: Sequence[Bar]


def ranked(shares: Sequence[float], names: Sequence[str], true: int | None = None, most: int = 5) -> list[Bar]:
    """The classes of a photo with the largest shares and, wherever it stands, the true one.

    Args:
        shares: of the V classes.
        names: of the same.
        true: number of the photo's class; None where nobody knows.
        most: bars, without the true class if it is not among them.

    Raises:
        InputError: not as many names as shares, none at all, or no such class.
    """
    if len(shares) != len(names) or not names or true is not None and not 0 <= true < len(names):
        raise InputError(f"{len(shares)} shares, {len(names)} names and the true class {true}: as many are needed, and "
                         "one of them", source="ranked")
    order = sorted(range(len(names)), key=lambda place: (-shares[place], place))  # equal ones as argmax has them
    return [Bar(names[place], float(shares[place]), rank, place == true) for rank, place in enumerate(order, 1)
            if rank <= most or place == true]


def top5_sheet(guesses: Sequence[Guess], *, title: str | None = None, note: str | None = None) -> Figure:
    """Photos, each with bars of its classes beside it.

    The prediction stands first; words ("predicted", "true class") and hatching say the same as the colours. A true
    class that is not among the best stands last, with its rank.

    Args:
        guesses: 1 to `MOST`.
        title: over it all, wrapped where it is too long.
        note: small print under it.

    Returns:
        The figure. Its axes are the photos, in order and labelled with their titles.

    Raises:
        InputError: none, or too many.
    """
    if not 1 <= len(guesses) <= MOST:
        raise InputError(f"{len(guesses)} photos: a picture shows 1 to {MOST}", source="top5_sheet")
    columns = len(guesses) if len(guesses) <= MOST_COLUMNS else 2 if len(guesses) == 4 else MOST_COLUMNS
    cells = [_Cell(guess) for guess in guesses]
    rows = [cells[first:first + columns] for first in range(0, len(cells), columns)]
    width = columns * (PHOTO + GAP + BARS + BETWEEN) - BETWEEN
    head, foot = (wrap(text, width, size) if text else [] for text, size in ((title, TITLE), (note, NOTE)))
    top = MARGIN + (len(head) * leading(TITLE) + 12 if head else 0)
    under = top + sum(max(cell.height for cell in row) + UNDER for row in rows) - UNDER
    figure = new_figure(under + (14 + len(foot) * leading(NOTE) if foot else 0) + MARGIN, width + 2 * MARGIN)
    write(figure, head, MARGIN, MARGIN, TITLE)
    write(figure, foot, MARGIN, under + 14, NOTE, color="0.35")
    for row in rows:
        for place, cell in enumerate(row):
            cell.draw(figure, top, MARGIN + place * (PHOTO + GAP + BARS + BETWEEN))
        top += max(cell.height for cell in row) + UNDER
    return figure


class _Cell:
    """One photo with its bars.

    Attributes:
        height: pixels it takes.
    """

    def __init__(self, guess: Guess) -> None:
        self._guess = guess
        self._source: Pair = (guess.photo.height, guess.photo.width)
        factor = PHOTO / max(self._source)
        self._photo: Pair = max(1, round(self._source[0] * factor)), max(1, round(self._source[1] * factor))
        self._title = wrap(guess.title, PHOTO + GAP + BARS, NOTE)
        self._names = [wrap(_said(bar), BARS, NAME) for bar in guess.bars]
        self._head = len(self._title) * leading(NOTE) + 4
        bars = sum(len(lines) * leading(NAME) + BAR + STEP for lines in self._names) - STEP
        self.height = self._head + max(self._photo[0], bars)

    def draw(self, figure: Figure, top: int, left: int) -> None:
        """Draw it with its upper left corner there."""
        write(figure, self._title, left, top, NOTE, color="0.35")
        y = top + self._head
        axes = axes_at(figure, self._guess.title, y, left + (PHOTO - self._photo[1]) // 2, *self._photo)
        axes.imshow(photo_at(self._guess.photo, self._photo), extent=(0, self._source[1], self._source[0], 0),
                    aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        left += PHOTO + GAP
        number = max(text_width(_percent(share), NOTE) for share in (1.0, 0.0, 0.9994)) + 10
        room = round(BARS - number)
        for bar, lines in zip(self._guess.bars, self._names):
            write(figure, lines, left, y, NAME)
            y += len(lines) * leading(NAME)
            _box(figure, y, left, room, facecolor=ROOM)
            _box(figure, y, left, room * bar.share, facecolor=PREDICTED if bar.rank == 1 else OTHER)
            if bar.true:
                _box(figure, y, left, room, fill=False, edgecolor="black", linewidth=1.0)
                _box(figure, y, left, room * bar.share, fill=False, edgecolor="black", linewidth=0, hatch="/////")
            write(figure, [_percent(bar.share)], left + room + 10, y + BAR - 1 - line(NOTE)[0], NOTE)
            y += BAR + STEP


def _said(bar: Bar) -> str:
    """The line over a bar."""
    role = "predicted, and the true class" if bar.rank == 1 and bar.true else (
        "predicted" if bar.rank == 1 else f"true class, rank {bar.rank}" if bar.true else "")
    return f"{bar.name} ({role})" if role else bar.name


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _box(figure: Figure, top: float, left: float, width: float, **style: object) -> None:
    """A bar, in pixels from the top left."""
    whole = figure.bbox
    figure.add_artist(Rectangle((left / whole.width, 1 - (top + BAR) / whole.height), width / whole.width,
                                BAR / whole.height, **style))  # type: ignore[arg-type]
