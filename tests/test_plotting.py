"""Figures: what is drawn where, pixel by pixel, and that nothing is cut, covered or global."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from minivl.errors import InputError
from minivl.geometry import Geometry
from minivl.images import Preprocessing, to_tensor
from minivl.maps import upsample, word_rows
from minivl.plotting import heat as heats
from minivl.plotting.attention import attention_sheet
from minivl.plotting.captions import caption_sheet
from minivl.plotting.figure import save_figure, text_width, wrap
from minivl.plotting.history import history_plot, moving_mean, plot_history
from minivl.plotting.sheet import LONGEST, grid_of, panel_size

SOURCES = [(480, 640), (640, 424), (96, 96), (60, 900), (900, 60), (3000, 4000), (7, 5)]


def photo_of(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def rendered(figure: Figure, folder: Path) -> np.ndarray:
    save_figure(figure, folder / "sheet.png")
    with Image.open(folder / "sheet.png") as picture:
        return np.asarray(picture.convert("RGB"))


def panel_pixels(figure: Figure, place: int, picture: np.ndarray) -> np.ndarray:
    """The part of a rendered sheet that is panel number `place`."""
    box = figure.axes[place].get_position()
    height, width = picture.shape[:2]
    left, right = round(box.x0 * width), round(box.x1 * width)
    return picture[round((1 - box.y1) * height):round((1 - box.y0) * height), left:right]


def words_of(count: int) -> list[str]:
    long = ["incomprehensibilities", "surfboard", "$x_1$", "a",
            "pneumonoultramicroscopicsilicovolcanoconiosis"]
    return [long[place % 7] if place % 7 < len(long) else "dog" for place in range(count)]


# ---- what is drawn where

@pytest.mark.parametrize("source", SOURCES)
def test_panels_are_drawn_pixel_by_pixel(source: tuple[int, int], tmp_path: Path) -> None:
    photo, size = photo_of(*source), panel_size(source, 4)
    heat = np.random.default_rng(1).random((2, *size)).astype(np.float32)
    heat[0, : size[0] // 3] = np.nan
    figure = caption_sheet(photo, [("<BOS>", None), ("red", heat[0]), ("dog", heat[1] / 3),
                                   ("<EOS>", heat[1])])
    assert [axes.get_label() for axes in figure.axes] == ["<BOS>", "red", "dog", "<EOS>", "colour bar"]
    picture = rendered(figure, tmp_path)
    plain, most = heats.photo_at(photo, size), float(np.nanmax(heat))
    drawn = [plain, *(heats.overlay(plain, one, most) for one in (heat[0], heat[1] / 3, heat[1]))]
    for place, expected in enumerate(drawn):
        np.testing.assert_array_equal(panel_pixels(figure, place, picture), expected)
    top, bottom = figure.axes[4].get_ylim()
    assert sorted((top, bottom)) == pytest.approx([0, most])


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("source", [(480, 640), (640, 424), (50, 37)])
def test_one_hot_heat_lands_on_its_box(source: tuple[int, int], mode: str, tmp_path: Path) -> None:
    photo = Image.new("RGB", source[::-1], (110, 110, 110))
    _, geometry = to_tensor(photo, Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, 0.9, mode), 32)
    one = torch.zeros(7, 7)
    one[1, 5] = 1
    size = panel_size(source, 2)
    # at the size drawn, and (slow for big photos) at the photo's own
    for shown in (replace(geometry, source=size), geometry):
        figure = caption_sheet(photo, [("<BOS>", None), ("dog", upsample(one, shown, "nearest").numpy())])
        picture = panel_pixels(figure, 1, rendered(figure, tmp_path)).astype(int)
        hot = picture[..., 0] - picture[..., 2] > 60  # the grey photo has no colour of its own
        scale = size[0] / source[0], size[1] / source[1]
        top, left, bottom, right = geometry.box(1, 5)
        rows, columns = hot.any(1).nonzero()[0], hot.any(0).nonzero()[0]
        found = (rows[0] / scale[0], columns[0] / scale[1],
                 (rows[-1] + 1) / scale[0], (columns[-1] + 1) / scale[1])
        slack = 0.51 * max(1 / scale[0], 1 / scale[1]) + (shown is geometry) * 0.51
        assert found == pytest.approx((top, left, bottom, right), abs=slack)
        assert hot[rows[0] + 1:rows[-1], columns[0] + 1:columns[-1]].all()


def test_what_was_not_seen_is_dark_grey_and_striped(tmp_path: Path) -> None:
    photo = photo_of(300, 600)
    geometry = Geometry(source=(300, 600), resized=(112, 224), crop=(0, 56), size=(112, 112), patch=(16, 16))
    heat = upsample(torch.full((7, 7), 0.02), replace(geometry, source=panel_size((300, 600), 2)))
    figure = caption_sheet(photo, [("<BOS>", None), ("dog", heat.numpy())])
    picture = rendered(figure, tmp_path)
    plain, drawn = (panel_pixels(figure, place, picture).astype(int) for place in (0, 1))
    unseen = np.isnan(heat.numpy())
    assert 0.4 < unseen.mean() < 0.6
    assert np.ptp(drawn[unseen], axis=-1).max() == 0
    assert drawn[unseen].mean() < 0.6 * plain[unseen].mean()
    black = heats.overlay(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), np.nan), 1.0)
    assert 0.3 < (black > 0).mean() < 0.7  # the stripes show on a black photo
    texts = [text.get_text() for text in figure.texts]
    assert any("not seen" in text for text in texts)
    assert not any("not seen" in text.get_text() for text in caption_sheet(
        photo, [("a", np.ones((3, 3)))]).texts)


def test_colour_rises_with_weight() -> None:
    photo = np.full((1, 101, 3), 90, np.uint8)
    drawn = heats.overlay(photo, np.linspace(0, 1, 101)[None], 1.0).astype(float)
    luma = drawn[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > -0.7).all() and luma[-1] > luma[0] + 100  # whole numbers of colour wobble by half
    # the photo shines through, less and less
    other = heats.overlay(photo + np.uint8(60), np.linspace(0, 1, 101)[None], 1.0)
    shine = (other - drawn).sum(-1)[0]
    assert (np.diff(shine) <= 2).all() and shine[0] > 60 and shine[-1] > 5


def test_heat_of_any_resolution_covers_the_photo() -> None:
    heat = np.random.default_rng(0).random((60, 90)).astype(np.float32)
    means = heat.reshape(20, 3, 30, 3).mean((1, 3))
    np.testing.assert_allclose(heats.heat_at(heat, (20, 30)), means, atol=1e-6)
    np.testing.assert_array_equal(heats.heat_at(heat, (120, 180)), heat.repeat(2, 0).repeat(2, 1))
    heat[:31], heat[31:] = np.nan, 0.25  # rows 30 to 32 become one, most of it seen
    small = heats.heat_at(heat, (20, 30))
    assert np.isnan(small[:10]).all()
    np.testing.assert_allclose(small[10:], 0.25, atol=1e-6)


# ---- layout

@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [1, 3, 10, 32])
def test_panels_keep_the_aspect_and_fit(source: tuple[int, int], count: int) -> None:
    grid = grid_of(source, count)
    assert grid.rows * grid.columns >= count > (grid.rows - 1) * grid.columns
    height, width = grid.panel
    assert max(height, width) <= LONGEST
    assert abs(height * source[1] - width * source[0]) <= max(source)  # rounded to a pixel
    assert grid.columns * (grid.column + 14) <= 1500 or grid.columns == 1


@pytest.mark.parametrize("source", [(480, 640), (640, 424), (96, 96), (900, 60)])
@pytest.mark.parametrize("count", [1, 30])
def test_nothing_is_clipped_or_covered(source: tuple[int, int], count: int) -> None:
    labels = [*words_of(count), "<EOS>"]
    heat = np.random.default_rng(0).random((7, 7)) * (0.0199 if count == 1 else 0.00199)
    figure = caption_sheet(photo_of(*source), [("<BOS>", None), *((label, heat) for label in labels)],
                           caption=" ".join(labels), logprob=-12.3, note="cross-attention " * 30)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]
    whole = figure.bbox
    for place, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.width and box.y1 <= whole.height
        for other in boxes[:place]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 0.5 or down <= 0.5, "two things lie on each other"
    assert min(text.get_fontsize() for text in figure.texts) >= 9  # type: ignore[type-var]
    drawn = "".join(text.get_text() for text in figure.texts).replace(" ", "")
    assert "".join(labels) in drawn and "pneumonoultramicro" in drawn or count < 5


def test_wrap() -> None:
    text = "a sentence that goes on, and a pneumonoultramicroscopicsilicovolcanoconiosis in it"
    lines = wrap(text, 150, 12)
    assert all(text_width(line, 12) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("short words", 500, 12) == ["short words"] and wrap("", 50, 12) == [""]


@pytest.mark.parametrize("count", [3, 16])
def test_attention_sheet(count: int, tmp_path: Path) -> None:
    photo, weights = photo_of(60, 90), np.random.default_rng(count).random((count, 14, 14))
    figure = attention_sheet(photo, weights.mean(0), weights, title="photo.jpg", note="layer 11")
    labels = [axes.get_label() for axes in figure.axes]
    assert labels == ["photo", f"mean of {count} heads", *(f"head {n}" for n in range(count)), "colour bar"]
    size = panel_size((60, 90), count + 2)
    drawn = panel_pixels(figure, count + 1, rendered(figure, tmp_path))
    most = max(heats.heat_at(one, size).max() for one in weights)
    np.testing.assert_array_equal(drawn, heats.overlay(heats.photo_at(photo, size),
                                                       heats.heat_at(weights[-1], size), most))
    assert len(attention_sheet(photo, weights[0]).axes) == 3


def test_wrong_requests(tmp_path: Path) -> None:
    photo = photo_of(20, 30)
    with pytest.raises(InputError, match="at least one panel"):
        caption_sheet(photo, [])
    with pytest.raises(InputError, match="negative"):
        caption_sheet(photo, [("a", np.full((5, 5), -0.1))])
    with pytest.raises(InputError, match=r"\(5,\)"):
        caption_sheet(photo, [("a", np.zeros(5))])
    with pytest.raises(InputError, match="sheet.jpg.*png"):
        save_figure(caption_sheet(photo, [("a", None)]), tmp_path / "sheet.jpg")
    assert not list(tmp_path.iterdir())
    # nothing but zeros, or nothing seen, is a picture, too
    caption_sheet(photo, [("a", np.zeros((5, 5))), ("b", np.full((5, 5), np.nan))], caption="")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "sheet.png"
    save_figure(caption_sheet(photo_of(20, 30), [("a", None)]), path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    figure = caption_sheet(photo_of(20, 30, 1), [("a", None)])
    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_no_global_state_is_touched() -> None:
    code = ("import sys\n"
            "import minivl.plotting.attention, minivl.plotting.captions, minivl.plotting.history\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n")
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- words

def test_word_rows() -> None:
    weights = torch.rand(2, 6, 9)  # rows 0..5 chose ids 1..6
    words = word_rows(weights, [(1, 2), (2, 5), (6, 7)])
    assert words.shape == (2, 3, 9)
    torch.testing.assert_close(words[:, 0], weights[:, 0])
    torch.testing.assert_close(words[:, 1], (weights[:, 1] + weights[:, 2] + weights[:, 3]) / 3)
    torch.testing.assert_close(words[:, 2], weights[:, 5])
    assert word_rows(weights, []).shape == (2, 0, 9)
    for span in ((0, 1), (3, 3), (6, 8)):
        with pytest.raises(InputError, match="chose ids 1 to 6"):
            word_rows(weights, [span])


# ---- history

def history(epochs: int, steps: int) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for epoch in range(1, epochs + 1):
        for step in range(steps * (epoch - 1) + 1, steps * epoch + 1):
            rows.append({"step": step, "loss": 5 / step + 1, "lr": 1e-3})
        rows.append({"epoch": epoch, "step": steps * epoch, "train_loss": 2.0, "cider_d": 0.1 * epoch,
                     "val_loss": 3 - 0.1 * epoch, "seconds": 3.5})
    return rows


def test_history_plot(tmp_path: Path) -> None:
    rows = history(4, 50)
    rows[3]["loss"] = float("nan")
    figure = history_plot({"a $b$ run": rows})
    losses, scores = figure.axes
    lines = {line.get_label(): line for line in losses.lines}
    np.testing.assert_allclose(lines["validation"].get_xydata(), [(50 * n, 3 - 0.1 * n) for n in range(1, 5)])
    raw = losses.lines[0].get_xydata()
    assert len(raw) == 199 and 4 not in raw[:, 0]  # a loss that is no number is left out
    assert losses.get_xlabel() == "step" and losses.get_ylabel() == "loss"
    (line,) = scores.lines
    assert line.get_label() == "cider_d"
    np.testing.assert_allclose(line.get_xydata(), [(50 * n, 0.1 * n) for n in range(1, 5)])
    assert plot_history(tmp_path, rows) == tmp_path / "history.png"
    with Image.open(tmp_path / "history.png") as picture:
        assert picture.size == (1240, 480)


def test_history_of_several_runs_and_of_a_beginning(tmp_path: Path) -> None:
    figure = history_plot({"one": history(2, 10), "_two": history(3, 10)})
    labels = [[text.get_text().strip() for text in legend.get_texts()]
              for legend in (figure.axes[0].get_legend(), figure.axes[1].get_legend(), *figure.legends)]
    assert labels == [["training (moving mean)", "validation"], ["cider_d"], ["one", "_two"]]
    colours = [line.get_color() for line in figure.axes[1].lines]
    assert len(set(colours)) == 2
    assert [line.get_color() for line in figure.legends[0].get_lines()] == colours
    save_figure(history_plot({"begun": history(1, 3)[:1]}), tmp_path / "begun.png")  # one step, no epoch
    for runs in ({}, {"empty": []}):
        with pytest.raises(InputError, match="no rows"):
            history_plot(runs)  # type: ignore[arg-type]


def rewarded(epochs: int, steps: int) -> list[dict[str, float]]:
    """Of self-critical training: a loss of either sign, and a reward."""
    return [row if "epoch" in row else {**row, "loss": -0.01 * row["step"], "reward": 0.5 + 0.001 * row["step"]}
            for row in history(epochs, steps)]


def test_rewards_have_axes_of_their_own(tmp_path: Path) -> None:
    figure = history_plot({"run": rewarded(2, 60)})
    losses, rewards, scores = figure.axes
    assert [line.get_label() for line in losses.lines] == ["validation"]  # not the loss of training beside it
    assert losses.get_ylabel() == "loss" and rewards.get_ylabel() == "reward of a step, mean"
    raw, mean = rewards.lines
    np.testing.assert_allclose(raw.get_xydata(), [(step, 0.5 + 0.001 * step) for step in range(1, 121)])
    assert mean.get_label() == "training (mean of 3 steps)"
    assert [line.get_label() for line in scores.lines] == ["cider_d"]
    save_figure(figure, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (1860, 480)
    both = history_plot({"first": history(2, 60), "then": rewarded(2, 60)})
    losses, rewards, scores = both.axes
    assert [len(axes.lines) for axes in both.axes] == [4, 2, 2]  # a training and two validations; one; two
    assert {line.get_color() for line in rewards.lines} == {scores.lines[1].get_color()}
    (alone,) = history_plot({"begun": rewarded(1, 3)[:2]}).axes
    assert alone.get_ylabel() == "reward of a step, mean" and len(alone.lines) == 2


@pytest.mark.parametrize("count", [2, 9, 24])
def test_the_legend_of_many_runs_covers_no_curve(count: int) -> None:
    figure = history_plot({f"runs/{'long_name_' * (number % 30)}$a$ {number}": history(2, 10 + number)
                           for number in range(count)})
    figure.draw(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.y0 >= 0 and legend.x1 <= whole.width
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(box is not None and box.y0 >= legend.y1 and box.height > 250 for box in boxes)
    colours = [tuple(np.atleast_1d(line.get_color())) for line in figure.axes[1].lines]
    assert len(set(colours)) == count


def test_moving_mean() -> None:
    values = np.random.default_rng(0).random(20)
    np.testing.assert_allclose(moving_mean(values, 1), values)
    smooth = moving_mean(values, 5)
    np.testing.assert_allclose(smooth[10], values[8:13].mean())
    np.testing.assert_allclose(smooth[0], values[:3].mean())
    np.testing.assert_allclose(smooth[-1], values[-3:].mean())
