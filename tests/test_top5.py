"""Photos beside bars: which classes are shown, what is drawn where, and that no words are cut or covered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from minivl.errors import InputError
from minivl.plotting.figure import save_figure
from minivl.plotting.heat import photo_at
from minivl.plotting.top5 import BAR, MOST, OTHER, PREDICTED, Bar, Guess, ranked, top5_sheet

NAMES = ["cat", "dog", "pneumonoultramicroscopicsilicovolcanoconiosis", "$x_1$ {} \\frac", "owl", "x" * 90,
         "a class of a fine-grained data set whose name is a whole sentence of many words", "newt", "Ærøskøbing"]
SHARES = [0.02, 0.3, 0.05, 0.25, 0.0, 0.2, 0.1, 0.0004, 0.0796]


def photo(height: int = 40, width: int = 60, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def guesses(count: int) -> list[Guess]:
    random = np.random.default_rng(count)
    sizes = [(40, 60), (90, 30), (4, 300), (300, 4), (50, 50)]
    made = []
    for place in range(count):
        shares = random.dirichlet(np.full(len(NAMES), 0.7)).tolist()
        true = None if place % 4 == 3 else int(random.integers(len(NAMES)))
        made.append(Guess(photo(*sizes[place % 5], seed=place), f"{place}_photo.png" if place % 3 else "folder/" * 30,
                          ranked(shares, NAMES, true)))
    return made


def test_the_best_classes_and_the_true_one() -> None:
    assert [(bar.name, bar.rank, bar.true) for bar in ranked(SHARES, NAMES, 3)] == [
        ("dog", 1, False), (NAMES[3], 2, True), (NAMES[5], 3, False), (NAMES[6], 4, False), ("Ærøskøbing", 5, False)]
    assert [bar.rank for bar in ranked(SHARES, NAMES, 4)] == [1, 2, 3, 4, 5, 9]
    assert ranked(SHARES, NAMES, 4)[-1] == Bar("owl", 0.0, 9, True)
    assert [bar.rank for bar in ranked(SHARES, NAMES)] == [1, 2, 3, 4, 5]
    assert not any(bar.true for bar in ranked(SHARES, NAMES))
    assert [bar.name for bar in ranked([0.5, 0.5], ["b", "a"], 1)] == ["b", "a"]  # as argmax


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_words_tell_predicted_and_true_apart() -> None:
    """Whoever sees no colours reads it; bars are as long as their shares."""
    for true, said in ((1, ["dog (predicted, and the true class)"]), (None, ["dog (predicted)"]),
                       (0, ["dog (predicted)", "cat (true class, rank 7)"])):
        figure = top5_sheet([Guess(photo(), "a.png", ranked(SHARES, NAMES, true))])
        words = words_of(figure)
        assert [word for word in words if "(" in word] == said and words[0] == "a.png"
        assert "30.0 %" in words and ("2.0 %" in words) == (true == 0)
        boxes = [one for one in figure.get_children() if isinstance(one, Rectangle) and one is not figure.patch]
        filled = [one for one in boxes if one.get_fill()]
        rooms, bars = filled[::2], filled[1::2]
        assert [bar.get_width() / room.get_width() for bar, room in zip(bars, rooms)] == pytest.approx(
            [bar.share for bar in ranked(SHARES, NAMES, true)])
        assert sum(one.get_hatch() is not None for one in boxes) == (true is not None)
        assert len(bars) == (6 if true == 0 else 5)
    figure = top5_sheet([Guess(photo(), "a.png", ranked([1.0, 0.0003, 0.0], NAMES[:3], 2))])
    assert [word for word in words_of(figure) if "%" in word] == ["100.0 %", "< 0.1 %", "0.0 %"]


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_no_words_are_cut_or_covered(count: int) -> None:
    figure = top5_sheet(guesses(count), title="a title of many words " * 12, note="a note " * 60)
    renderer = FigureCanvasAgg(figure).get_renderer()
    whole = figure.bbox
    texts = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    solid = [axes.get_window_extent(renderer) for axes in figure.axes]
    solid += [one.get_window_extent(renderer) for one in figure.get_children()
              if isinstance(one, Rectangle) and one is not figure.patch and one.get_width()]
    for place, (said, box) in enumerate(texts):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.width and box.y1 <= whole.height, said
        others = [other for _, other in texts[place + 1:]] + solid
        assert not any(min(box.x1, other.x1) - max(box.x0, other.x0) > 0.5 and
                       min(box.y1, other.y1) - max(box.y0, other.y0) > 0.5 for other in others), said
    joined = "".join("".join(words_of(figure)).split())
    for guess in guesses(count):
        assert "".join(guess.title.split()) in joined
        assert all("".join(bar.name.split()) in joined for bar in guess.bars)


def test_photos_are_drawn_pixel_by_pixel(tmp_path: Path) -> None:
    made = guesses(5)
    figure = top5_sheet(made)
    save_figure(figure, tmp_path / "top5.png")
    with Image.open(tmp_path / "top5.png") as opened:
        picture = np.asarray(opened.convert("RGB"))
    assert [axes.get_label() for axes in figure.axes] == [guess.title for guess in made]
    height, width = picture.shape[:2]
    for axes, guess in zip(figure.axes, made):
        box = axes.get_position()
        part = picture[round((1 - box.y1) * height):round((1 - box.y0) * height),
                       round(box.x0 * width):round(box.x1 * width)]
        np.testing.assert_array_equal(part, photo_at(guess.photo, part.shape[:2]))
        assert max(part.shape) == 210
    for colour in (PREDICTED, OTHER):
        rgb = [int(colour[place:place + 2], 16) for place in (1, 3, 5)]
        assert (picture == rgb).all(2).sum() > 20 * BAR


def test_what_cannot_be() -> None:
    for shares, names, true in (([0.5], ["a", "b"], None), ([], [], None), ([0.5, 0.5], ["a", "b"], 2)):
        with pytest.raises(InputError, match="as many are needed"):
            ranked(shares, names, true)
    one = Guess(photo(), "a", ranked(SHARES, NAMES))
    for count in (0, MOST + 1):
        with pytest.raises(InputError, match=f"{count} photos: a picture shows 1 to {MOST}"):
            top5_sheet([one] * count)
