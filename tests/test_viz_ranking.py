"""viz.py ranking: which captions are drawn, whose attention, where everything stands, and what a mistake says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from random_models import randomise

import minivl
import viz
from minivl.data.scenes import Scenes
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.maps import to_grid, upsample
from minivl.metrics.clipscore import PRESETS, clip_score
from minivl.models.captioner import Captioner, CaptionerConfig
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.plotting import heat as heats
from minivl.plotting.figure import save_figure
from minivl.plotting.ranking import MOST_WORDS, Ranked, ranking_sheet, word_size
from minivl.text.tokenizer import Tokenizer
from minivl.train.ranking import extremes

MEAN = (0.5, 0.5, 0.5)
CAPTIONS = ["a red dog under the umbrella", "two yellow birds", "a tree", "the dog beside a blue tree", "birds birds",
            "an unheard word"]
WORDS = Tokenizer.train([*CAPTIONS[:-1], "a photo depicts"])


def vision(size: tuple[int, int], classes: int) -> ViTConfig:
    return ViTConfig(size, (8, 8), 24, 2, 3, 48, num_classes=classes)


def clip(tokenizer: Tokenizer | None = WORDS, preprocessing: bool = True) -> CLIP:
    model = CLIP(CLIPConfig(vision((24, 24), 10), TextConfig(WORDS.vocab_size, 20, 2, 2, 40, 10, max_len=8,
                                                             bos_id=WORDS.bos_id, eot_id=WORDS.eos_id)),
                 tokenizer=tokenizer, preprocessing=Preprocessing((24, 24), MEAN, MEAN) if preprocessing else None)
    randomise(model, 1, 0.3)
    return model


def captioner(max_len: int = 12, tokenizer: Tokenizer | None = WORDS, mode: str = "crop") -> Captioner:
    decoder = DecoderConfig(WORDS.vocab_size, 32, 3, 4, 64, max_len=max_len, pad_id=WORDS.pad_id,
                            bos_id=WORDS.bos_id, eos_id=WORDS.eos_id)
    model = Captioner(CaptionerConfig(vision((32, 24), 0), decoder), tokenizer=tokenizer,
                      preprocessing=Preprocessing((32, 24), MEAN, MEAN, 1.0, mode))
    randomise(model, 2, 0.3)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six photos of several shapes with captions, and weights."""
    draw = np.random.default_rng(0)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number, shape in enumerate([(60, 80), (80, 60), (50, 50), (40, 90), (64, 64), (30, 70)]):
        name = f"deep/{number}.png" if number == 2 else f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "pred.json").write_text(json.dumps({str(number): text for number, text in enumerate(CAPTIONS)}))
    minivl.save(clip(), tmp_path / "clip.safetensors")
    minivl.save(captioner(), tmp_path / "captioner.safetensors")
    return tmp_path


def run(folder: Path, *args: object) -> None:
    viz.main(["ranking", *map(str, args), "--out", str(folder / "out" / "ranking.png")])


def given(folder: Path, *, weights: bool = True) -> list[object]:
    options = ["--predictions", folder / "pred.json", "--images", folder / "photos", "--clip",
               folder / "clip.safetensors"]
    return [*options, "--weights", folder / "captioner.safetensors"] if weights else options


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def scores(folder: Path, preset: str) -> dict[str, float]:
    """Of every photo, by the library."""
    model, names = clip(), [f"deep/{n}.png" if n == 2 else f"{n}.png" for n in range(6)]
    images, _ = minivl.preprocess([folder / "photos" / name for name in names], model)
    with torch.no_grad():
        features = model.encode_image(images), model.encode_text(model.tokenize(
            [PRESETS[preset].prefix + text for text in CAPTIONS]))
    return dict(zip(names, clip_score(*features, preset=preset).per_item.values()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("weights", [True, False])
def test_the_best_and_the_worst_are_named(preset: str, weights: bool, folder: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, *given(folder, weights=weights), "--clip-preset", preset, "--pairs", 2, "--json")
    *told, last = rows(capsys)
    expected = scores(folder, preset)
    assert [(row["group"], row["place"]) for row in told] == [("best", 1), ("best", 2), ("worst", 1), ("worst", 2)]
    for row in told:
        assert row["score"] == pytest.approx(expected[row["image"]], abs=1e-5)
        assert row["caption"] == CAPTIONS[int(Path(row["image"]).stem)]
    order = sorted(expected, key=lambda name: -expected[name])
    assert [row["image"] for row in told[:2]] == order[:2]
    assert [row["score"] for row in told[2:]] == pytest.approx(sorted(expected.values())[:2], abs=1e-5)
    assert last["captions"] == 6 and f"clipscore:{preset}|" in last["signature"] and "model:" in last["signature"]
    assert last["score"] == pytest.approx(max(0, np.mean(list(expected.values()))), abs=1e-5)
    assert (folder / "out" / "ranking.png").stat().st_size > 10_000


def test_extremes() -> None:
    found = {"a": 0.5, "b": 0.1, "c": 0.5, "d": 0.1, "e": 0.9}
    assert extremes(found, 2) == (["e", "a"], ["b", "d"])
    assert extremes(found, 9) == (["e", "a", "c"], ["b", "d"])  # none is in both
    assert extremes({"a": 1.0}, 3) == (["a"], [])
    assert extremes(dict.fromkeys("abcd", 0.0), 1) == (["a"], ["b"])


def test_panels_are_the_looks_at_each_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[Any] = []
    monkeypatch.setattr(viz, "ranking_sheet", lambda groups, **texts: sheets.append((groups, texts)))
    monkeypatch.setattr(viz, "save_figure", lambda figure, target: None)
    run(folder, *given(folder), "--layer", 1, "--heads", "0,3")
    (groups, texts), = sheets
    assert [heading for heading, _ in groups] == ["best of 6", "worst of 6"] and [len(g) for _, g in groups] == [3, 3]
    assert "layer 1 (of 0 to 2), mean of heads 0, 3 of captioner.safetensors" in texts["note"]
    model, seen = captioner(), set()
    for one in (one for _, group in groups for one in group):
        name = one.head.split(" · ")[2]
        text = CAPTIONS[int(Path(name).stem)]
        seen.add(text)
        assert one.caption == text
        images, (geometry,) = minivl.preprocess([folder / "photos" / name], model)
        ids = [WORDS.bos_id, *WORDS.encode(text), WORDS.eos_id]
        record = minivl.AttnRecord(sites=("cross",), layers=[1], heads=[0, 3])
        with torch.no_grad():
            logp = model.replay(images, [ids[:-1]], attn=record).log_softmax(-1)[0]
        likely = sum(float(logp[place, id]) for place, id in enumerate(ids[1:]))
        assert f"log-probability \N{MINUS SIGN}{-likely:.2f}" in one.note
        words = [word if WORDS.encode(word) != [WORDS.unk_id] else "<UNK>" for word in text.split()]
        assert [label for label, _ in one.panels] == [*words, "<EOS>"]
        assert ("unknown to it" in one.note) == ("<UNK>" in words)
        size = word_size(geometry.source, len(one.panels))
        for place, (_, heat) in enumerate(one.panels):
            grid = to_grid(record["cross", 1][0, :, place].mean(0), 1, geometry.grid)
            expected = upsample(grid, minivl.geometry.Geometry(size, geometry.resized, geometry.crop, geometry.size,
                                                               geometry.patch))
            torch.testing.assert_close(torch.from_numpy(heat), expected, equal_nan=True)
    assert seen == {*CAPTIONS} and any("unknown to it" in one.note for _, group in groups for one in group)


def test_a_caption_too_long_for_the_decoder_is_cut_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[Any] = []
    monkeypatch.setattr(viz, "ranking_sheet", lambda groups, **texts: sheets.append(groups))
    monkeypatch.setattr(viz, "save_figure", lambda figure, target: None)
    for max_len, drawn in ((12, 12), (MOST_WORDS + 20, MOST_WORDS)):
        minivl.save(captioner(max_len), folder / "captioner.safetensors")
        (folder / "pred.json").write_text(json.dumps({"0": "a dog " * 50, "1": "a dog"}))
        run(folder, *given(folder), "--pairs", 1)
        long, = [one for _, group in sheets[-1] for one in group if len(one.caption) > 10]
        assert f"only the first {drawn} words are drawn" in long.note and len(long.panels) == drawn
        short, = [one for _, group in sheets[-1] for one in group if len(one.caption) < 10]
        assert "words are drawn" not in short.note and [label for label, _ in short.panels] == ["a", "dog", "<EOS>"]


@pytest.mark.parametrize("photos", [True, False])
def test_without_predictions_the_captions_are_the_captioners_own(photos: bool, folder: Path,
                                                                 capsys: pytest.CaptureFixture[str],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIVL_WEIGHTS", str(folder))
    monkeypatch.setattr(viz, "SHIPPED", "captioner")
    monkeypatch.setattr(viz, "SHIPPED_CLIP", "clip")
    options = ["--images", folder / "photos", "--clip", "clip", "--weights", "captioner"] if photos else [
        "--scenes", 6, "--seed", 4]
    run(folder, *options, "--beams", 2, "--pairs", 3, "--json")
    told = {row["image"]: row["caption"] for row in rows(capsys)[:-1]}
    assert len(told) == 6
    drawn = {f"scene-{number}": scene.image for number, scene in zip(
        range(viz.SCENES_START, viz.SCENES_START + 6), Scenes(6, seed=4, size=32, start=viz.SCENES_START))}
    for name, caption in told.items():
        photo = folder / "photos" / name if photos else drawn[name]
        said, = captioner().caption([photo], beams=2, max_len=11)
        assert caption == said.text


def test_photos_without_a_caption_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str],
                                               caplog: pytest.LogCaptureFixture) -> None:
    (folder / "pred.json").write_text(json.dumps([{"image_id": 4, "caption": "a tree"}]))
    with caplog.at_level("INFO"):
        run(folder, *given(folder), "--json")
    row, last = rows(capsys)
    assert (row["image"], row["group"], last["captions"]) == ("4.png", "best", 1)
    assert "5 photos without a caption are left out" in caplog.text


@pytest.mark.parametrize("options, words", [
    (["--pairs", 0], "--pairs 0: give 1 to 20"), (["--pairs", 21], "--pairs 21"),
    (["--predictions", "pred.json"], "--images is missing"), (["--images", "photos"], "--clip is missing"),
    (["--images", "photos", "--clip", "clip.safetensors"], "--predictions or --weights is missing"),
    (["--images", "photos", "--clip", "c", "--weights", "w", "--scenes", 3], "--scenes: photos are given"),
    (["--images", "photos", "--clip", "c", "--predictions", "p", "--beams", 3], "--beams: the captions are given"),
    (["--images", "photos", "--clip", "c", "--predictions", "p", "--layer", 0], "--layer, --heads: without --weights"),
    (["--images", "photos", "--clip", "c", "--predictions", "p", "--heads", "mean"], "--layer, --heads: without"),
    (["--images", "photos", "--clip", "vit.safetensors", "--predictions", "pred.json"], "vit.*is a vit; a CLIP is"),
    (["--images", "photos", "--clip", "bare.safetensors", "--predictions", "pred.json"], "bare.*preprocessing is unk"),
    (["--images", "photos", "--clip", "mute.safetensors", "--predictions", "pred.json"], "mute.*has no tokenizer"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "list.json"], "list.json: entry 0 is"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "extra.json"],
     "extra.json: does not fit the photos of photos: captions of no image there: 1 .*'9'.*; empty captions: 1 .*'1'"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "other.json"], "no id of other.json"),
    (["--images", "broken", "--clip", "clip.safetensors", "--predictions", "pred.json"], "5.png: is not an image"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "pred.json", "--weights",
      "vit.safetensors"], "vit.safetensors: is a classifier"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "pred.json", "--weights",
      "clip.safetensors"], "clip.safetensors: is a clip, which says no captions"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "pred.json", "--weights",
      "idle.safetensors"], "cannot be told a caption"),
    (["--images", "photos", "--clip", "clip.safetensors", "--predictions", "pred.json", "--weights",
      "captioner.safetensors", "--layer", 3], "layer 3: there are 3"),
])
def test_mistakes(options: list[object], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    minivl.save(ViT(vision((24, 24), 5), preprocessing=Preprocessing((24, 24), MEAN, MEAN)), "vit.safetensors")
    minivl.save(clip(preprocessing=False), "bare.safetensors")
    minivl.save(clip(tokenizer=None), "mute.safetensors")
    minivl.save(captioner(tokenizer=None), "idle.safetensors")
    Path("list.json").write_text('["a dog"]')
    Path("extra.json").write_text('{"0": "a dog", "1": " ", "9": "a cat"}')
    Path("other.json").write_text('{"x": "a dog"}')
    Path("broken").mkdir()
    for number in range(6):
        (Path("broken") / f"{number}.png").write_bytes(
            b"no image" if number == 5 else (folder / "photos/0.png").read_bytes())
    with pytest.raises(InputError, match=words) as caught:
        run(folder, *options)
    assert "\n" not in str(caught.value) and not (folder / "out").exists()


def test_the_picture_is_a_png(folder: Path) -> None:
    with pytest.raises(InputError, match="--out .*ranking.jpg: the picture is written as .png"):
        viz.main(["ranking", "--out", str(folder / "ranking.jpg")])


# -- the figure ----------------------------------------------------------------------------------------------

def photo_of(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def groups_of(words: int, shapes: list[tuple[int, int]]) -> list[tuple[str, list[Ranked]]]:
    draw = np.random.default_rng(1)
    long = ["incomprehensibilities", "a", "$x_1$", "pneumonoultramicroscopicsilicovolcanoconiosis", "dog"]
    labels = [long[place % len(long)] for place in range(words)]
    made = [Ranked(photo_of(*shape), f"{place} · CLIPScore 0.1234 · {'long_name_' * place}.jpg",
                   " ".join(long * (place + 1)) if place else "",
                   [(label, draw.random((5, 7))) for label in labels], "log-probability " * 3 * place)
            for place, shape in enumerate(shapes)]
    return [("best of 9", made[::2]), ("worst of 9", made[1::2])]


SHAPES = [(480, 640), (640, 424), (96, 96), (60, 900), (900, 60)]


@pytest.mark.parametrize("words, shapes", [(0, SHAPES), (3, SHAPES), (14, SHAPES[:2]), (MOST_WORDS, SHAPES[1:2])])
def test_nothing_is_clipped_or_covered(words: int, shapes: list[tuple[int, int]]) -> None:
    figure = ranking_sheet(groups_of(words, shapes), title="a title " * 30, subtitle="signature|" * 30,
                           note="cross-attention " * 30)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]
    whole = figure.bbox
    assert len(figure.axes) == len(shapes) * (1 + words) + (words > 0)
    for place, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.width and box.y1 <= whole.height
        for other in boxes[:place]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 0.5 or down <= 0.5, "two things lie on each other"


def rendered(figure: Figure, folder: Path) -> np.ndarray:
    save_figure(figure, folder / "ranking.png")
    with Image.open(folder / "ranking.png") as picture:
        return np.asarray(picture.convert("RGB"))


def pixels_of(figure: Figure, place: int, drawn: np.ndarray) -> np.ndarray:
    box, (height, width) = figure.axes[place].get_position(), drawn.shape[:2]
    return drawn[round((1 - box.y1) * height):round((1 - box.y0) * height),
                 round(box.x0 * width):round(box.x1 * width)]


@pytest.mark.parametrize("words, shape", [*((2, shape) for shape in SHAPES), (15, SHAPES[0]), (15, SHAPES[3])])
def test_panels_are_drawn_pixel_by_pixel_on_one_scale(words: int, shape: tuple[int, int], tmp_path: Path) -> None:
    photo, size = photo_of(*shape), word_size(shape, words)
    drawn = np.random.default_rng(words).random((2, words, *size)).astype(np.float32)
    drawn[0] *= 0.4
    drawn[0, 0, : size[0] // 3] = np.nan
    figure = ranking_sheet([("best", [Ranked(photo, "1", "a", [(str(n), heat) for n, heat in enumerate(drawn[0])])]),
                            ("worst", [Ranked(photo, "2", "b", [(str(n), heat) for n, heat in enumerate(drawn[1])])])])
    assert [axes.get_label() for axes in figure.axes] == ["1", *map(str, range(words)), "2", *map(str, range(words)),
                                                          "colour bar"]
    plain, most, picture = heats.photo_at(photo, size), float(np.nanmax(drawn)), rendered(figure, tmp_path)
    for pair in range(2):
        for word in (0, words - 1):
            np.testing.assert_array_equal(pixels_of(figure, pair * (words + 1) + 1 + word, picture),
                                          heats.overlay(plain, drawn[pair, word], most))
    assert sorted(figure.axes[-1].get_ylim()) == pytest.approx([0, most])
    assert any("not seen" in text.get_text() for text in figure.texts)


def test_without_heat_the_groups_stand_side_by_side() -> None:
    figure = ranking_sheet(groups_of(0, SHAPES))
    left = [axes.get_position().x0 for axes in figure.axes]
    assert left[0] == left[1] == left[2] < 0.1 and left[3] == left[4] > 0.5
    with pytest.raises(InputError, match="at least one caption"):
        ranking_sheet([("best", [])])
    with pytest.raises(InputError, match="61 panels, at most 60"):
        ranking_sheet(groups_of(MOST_WORDS + 1, SHAPES[:1]))
    with pytest.raises(InputError, match="negative"):
        ranking_sheet([("best", [Ranked(photo_of(9, 9), "1", "a", [("a", np.full((5, 5), -1.0))])])])
