"""viz.py positions and its figure: which cell shows what, that nothing is cut, and what a mistake says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from catr_reference import catr_state
from matplotlib.figure import Figure
from PIL import Image
from random_models import captioner, randomise

import minivl
import viz
from minivl.errors import InputError
from minivl.explain.positions import position_similarity
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.plotting.figure import save_figure
from minivl.plotting.positions import COLOURS, GAP, UNKNOWN, positions_plot


def similarity(*grid: int) -> np.ndarray:
    cells = int(np.prod(grid))
    table = torch.randn(1, cells, 6, generator=torch.Generator().manual_seed(cells))
    return position_similarity(table, 0, (grid[0], grid[1])).numpy()


def rendered(figure: Figure, folder: Path) -> np.ndarray:
    save_figure(figure, folder / "positions.png")
    with Image.open(folder / "positions.png") as picture:
        return np.asarray(picture.convert("RGB"))


def maps_of(figure: Figure, folder: Path) -> np.ndarray:
    """The part of the rendered figure that is maps."""
    picture = rendered(figure, folder)
    box = figure.axes[0].get_position()
    height, width = picture.shape[:2]
    return picture[round((1 - box.y1) * height):round((1 - box.y0) * height),
                   round(box.x0 * width):round(box.x1 * width)]


def vit(size: tuple[int, int], **changes: object) -> ViT:
    model = ViT(ViTConfig(size, (4, 4), 12, 1, 3, 24, num_classes=0, **changes))  # type: ignore[arg-type]
    randomise(model)
    return model


def clip() -> CLIP:
    model = CLIP(CLIPConfig(ViTConfig((8, 12), (4, 4), 12, 1, 3, 24, num_classes=7),
                            TextConfig(20, 8, 1, 2, 16, 7, bos_id=1, eot_id=2)))
    randomise(model)
    return model


def run(*args: object) -> None:
    viz.main(["positions", *map(str, args)])


# -- the figure ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("grid, rows, columns", [
    ((3, 5), range(3), range(5)), ((14, 2), range(14), range(2)), ((1, 1), range(1), range(1)),
    ((15, 37), range(0, 15, 2), range(0, 37, 3)), ((20, 31), range(0, 20, 2), range(0, 31, 3))])
def test_every_cell_has_the_colour_of_its_cosine(grid: tuple[int, int], rows: range, columns: range,
                                                 tmp_path: Path) -> None:
    cosines = similarity(*grid)
    if grid[0] * grid[1] > 1:
        cosines[0, 0, -1, -1] = np.nan
    figure = positions_plot(cosines)
    picture = maps_of(figure, tmp_path)
    cell = (picture.shape[1] + GAP) // len(columns) - GAP
    assert cell % grid[1] == 0
    cell //= grid[1]
    steps = cell * grid[0] + GAP, cell * grid[1] + GAP
    assert picture.shape[:2] == (len(rows) * steps[0] - GAP, len(columns) * steps[1] - GAP)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            drawn = picture[i * steps[0]:(i + 1) * steps[0], j * steps[1]:(j + 1) * steps[1]]
            wanted = (COLOURS((cosines[row, column] + 1) / 2)[..., :3])
            wanted[np.isnan(cosines[row, column])] = UNKNOWN
            expected = (wanted * 255).round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
            np.testing.assert_array_equal(drawn[:cell * grid[0], :cell * grid[1]], expected)
            assert (drawn[cell * grid[0]:] == 255).all() and (drawn[:, cell * grid[1]:] == 255).all()
    axes = figure.axes[0]
    # of narrow maps not all are numbered
    shown = [int(label.get_text()) for label in axes.get_xticklabels()]
    assert shown == list(columns)[::len(columns) // len(shown) or 1][:len(shown)] and shown[0] == columns[0]
    for numbers, ticks, step, labels in ((rows, axes.get_yticks(), steps[0], axes.get_yticklabels()),
                                         (columns, axes.get_xticks(), steps[1], axes.get_xticklabels())):
        for tick, label in zip(ticks, labels, strict=True):
            assert list(numbers)[int(tick // step)] == int(label.get_text())
    assert axes.get_xlabel() == "input patch column" and axes.get_ylabel() == "input patch row"


@pytest.mark.parametrize("grid", [(14, 14), (1, 10), (10, 1), (2, 2), (4, 11), (37, 37), (5, 120), (1, 1)])
def test_nothing_is_clipped_or_covered(grid: tuple[int, int]) -> None:
    cells = grid[0] * grid[1]
    cosines = np.broadcast_to(np.linspace(-1, 1, cells, dtype=np.float32).reshape(grid), (*grid, *grid))
    figure = positions_plot(cosines, title="Position embeddings of $a$ " + "long_name " * 20, note="and so on " * 30)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.draw(renderer)
    axes, bar = figure.axes
    assert [one.get_label() for one in figure.axes] == ["positions", "colour bar"] and bar.get_ylim() == (-1, 1)
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [one.get_window_extent(renderer) for one in (axes, axes.xaxis.label, axes.yaxis.label,
                                                          *axes.get_xticklabels(), *axes.get_yticklabels())]
    boxes.append(bar.get_tightbbox(renderer))
    for place, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        for other in boxes[:place]:
            across, down = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 0.5 or down <= 0.5, "two things lie on each other"
    assert max(figure.bbox.width, figure.bbox.height) < 2000


def test_large_grids_say_what_is_left_out() -> None:
    def note(*grid: int) -> str:
        # what is said does not depend on the values
        text = positions_plot(np.zeros((*grid, *grid), dtype=np.float32)).texts
        return " ".join(line.get_text() for line in text)

    assert "of the maps every third row and every third column is shown" in note(37, 37)
    assert "of the maps every second column is shown" in note(14, 15)
    assert "of the maps every 4th row is shown" in note(43, 1)
    assert "shown" not in note(14, 14) and "all 14 x 14 patches" in note(14, 14)


def test_not_similarities() -> None:
    for shape in ((3, 4), (3, 4, 4, 3), (0, 0, 0, 0)):
        with pytest.raises(InputError, match="rows, columns, rows, columns"):
            positions_plot(np.zeros(shape))


# -- the program ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [{}, {"dist_token": True}, {"registers": 2, "pos_prefix": False},
                                     {"class_token": False, "pool": "mean"}])
def test_prefix_tokens_are_no_patches(changes: dict[str, object], tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit((12, 20), **changes)
    minivl.save(model, tmp_path / "vit.safetensors")
    drawn = []
    monkeypatch.setattr(viz, "positions_plot", lambda cosines, **texts: drawn.append((cosines, texts)) or
                        positions_plot(cosines, **texts))
    run("--weights", tmp_path / "vit.safetensors", "--out", tmp_path / "new" / "p.png", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told == {"weights": str(tmp_path / "vit.safetensors"), "grid": [3, 5], "prefix": model.config.n_prefix,
                    "path": str(tmp_path / "new" / "p.png")}
    (cosines, texts), = drawn
    patches = model.pos_embed[0, -15:].detach()
    expected = torch.nn.functional.cosine_similarity(patches[:, None], patches[None], dim=2).view(3, 5, 3, 5)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    names = {"dist_token": "distillation token with the patches: ", "class_token": "",
             "registers": "no position embedding: [class] token, register 0, register 1"}
    assert names[next(iter(changes))] in texts["note"] if changes else "[class] token with" in texts["note"]
    assert (texts["note"] == "") == (changes.get("class_token") is False)


def test_the_note_tells_the_range_of_the_class_token() -> None:
    model = vit((4, 8))
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, :, :2] = torch.tensor([[2.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
        assert viz.prefix_note(model) == "[class] token with the patches: \N{MINUS SIGN}1.00 to 0.60"
        model.pos_embed[0, 0] = 0
        assert viz.prefix_note(model) == "[class] token with the patches: none, all zeros"


def test_encoders_of_captioners_and_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(viz, "positions_plot", lambda cosines, **texts: drawn.append(cosines))
    monkeypatch.setattr(viz, "save_figure", lambda figure, target: None)
    for model in (captioner(), clip()):
        minivl.save(model, tmp_path / "w.safetensors")
        run("--weights", tmp_path / "w.safetensors")
        encoder = viz.encoder_of(model)
        assert isinstance(encoder, ViT) and encoder.config.pos_prefix
        np.testing.assert_array_equal(drawn[-1], position_similarity(encoder.pos_embed, 1, encoder.config.grid))


def test_mistakes(tmp_path: Path) -> None:
    minivl.save(minivl.from_state_dict(catr_state()), tmp_path / "catr.safetensors")
    minivl.save(vit((8, 8)), tmp_path / "vit.safetensors")
    broken = vit((8, 8))
    with torch.no_grad():
        broken.pos_embed[0, 1, 2] = torch.nan
    minivl.save(broken, tmp_path / "broken.safetensors")
    for weights, out, told in [("catr", "p.png", "catr.safetensors: its encoder is a convolutional network"),
                               ("broken", "p.png", "broken.safetensors: the position table holds"),
                               ("vit", "p.pdf", "pictures are written as .png"), ("none", "p.png", "no such file")]:
        with pytest.raises(InputError, match=told):
            run("--weights", tmp_path / f"{weights}.safetensors", "--out", tmp_path / "out" / out)
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
def test_deit_knows_rows_and_columns(shared: Path, tmp_path: Path) -> None:
    """Figure 7 of the paper: a patch is most like itself, then like its neighbours, then its row and column."""
    weights = shared / "weights/deit_tiny_patch16_224.timm.safetensors"
    run("--weights", weights, "--out", tmp_path / "deit.png")
    with Image.open(tmp_path / "deit.png") as picture:
        assert min(picture.size) > 1000
    model = minivl.load(weights)
    assert isinstance(model, ViT)
    cosines = position_similarity(model.pos_embed, 1, (14, 14))
    inner = [(cosines[i, j], i, j) for i in range(2, 12) for j in range(2, 12)]
    neighbours = np.mean([float(one[i + 1, j] + one[i, j + 1]) / 2 for one, i, j in inner])
    lines = np.mean([float(one[i].mean() + one[:, j].mean()) / 2 for one, i, j in inner])
    assert neighbours > 0.7 and lines > float(cosines.mean()) + 0.1
