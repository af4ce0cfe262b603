"""viz.py: the way from photos and weights to pictures, and what a mistake says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from catr_reference import catr_state
from PIL import Image

import minivl
import viz
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.models.captioner import Caption, Captioner, CaptionerConfig
from minivl.models.decoder import DecoderConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
MEAN = (0.5, 0.5, 0.5)


def encoder(**changes: object) -> ViTConfig:
    settings = {"image_size": (64, 48), "patch_size": (16, 16), "width": 24, "depth": 2, "num_heads": 3,
                "mlp_dim": 48, "num_classes": 0}
    return ViTConfig(**{**settings, **changes})  # type: ignore[arg-type]


def lively(model: torch.nn.Module) -> None:
    """Weights large enough that attention and captions are far from uniform."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)


def captioner(mode: str = "crop", notes: dict[str, object] | None = None) -> Captioner:
    tokenizer = Tokenizer.train(["a red dog under the blue umbrella", "two yellow birds beside a tree"])
    decoder = DecoderConfig(tokenizer.vocab_size, 32, 3, 4, 64, max_len=9, pad_id=tokenizer.pad_id,
                            bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    model = Captioner(CaptionerConfig(encoder(), decoder), tokenizer=tokenizer, notes=notes,
                      preprocessing=Preprocessing((64, 48), MEAN, MEAN, 1.0, mode))
    lively(model)
    return model.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    minivl.save(captioner(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a landscape, a portrait stored lying (EXIF) and a text."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, size in (("b_wide", (60, 90)), ("a_turned", (60, 90))):
        image = Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6 if name == "a_turned" else 1
        image.save(folder / f"{name}.jpg", exif=exif)
    (folder / "notes.txt").write_text("no photo")
    return folder


def run(*args: object) -> None:
    viz.main([str(arg) for arg in args])


# ---- caption

def test_caption_draws_every_photo_of_a_folder(weights: Path, photos: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    run("caption", photos, "--weights", weights, "--out", tmp_path, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["a_turned.png", "b_wide.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_turned.png", "b_wide.png"]
    files = [photos / "a_turned.jpg", photos / "b_wide.jpg"]
    model = minivl.load(weights)
    assert isinstance(model, Captioner)
    expected = model.caption(files, max_len=8)
    for row, caption in zip(rows, expected):
        assert (row["ids"], row["text"]) == (list(caption.ids), caption.text)
        assert row["logprob"] == pytest.approx(caption.logprob, abs=1e-4)
        assert [tuple(word.values()) for word in row["words"]] == list(map(tuple, caption.words or ()))


def test_panels_show_the_looks_that_chose_the_words(weights: Path, photos: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = []
    monkeypatch.setattr(viz, "caption_sheet", lambda *args, **texts: sheets.append((*args, texts)))
    monkeypatch.setattr(viz, "save_figure", lambda figure, target: None)
    file = photos / "a_turned.jpg"
    run("caption", file, "--weights", weights, "--out", tmp_path, "--layer", 1, "--heads", "0,2",
        "--beams", 1)
    (photo, panels, texts), = sheets
    assert photo.size == (60, 90)  # turned
    model = minivl.load(weights)
    assert isinstance(model, Captioner) and model.tokenizer is not None
    images, (geometry,) = minivl.preprocess([file], model)
    caption, = model.caption(images, beams=1, max_len=8)
    record = minivl.AttnRecord(sites=("cross",))
    model.replay(images, [caption.ids[:-1]], attn=record)
    rows = record["cross", 1][0, [0, 2]].mean(0)  # (T, N)
    unknown = [("<UNK>", place) for place, id in enumerate(caption.ids) if id == model.tokenizer.unk_id]
    said = [(word.text, word.start) for word in caption.words or ()]
    said = sorted(said + unknown, key=lambda one: one[1])
    words = [text for text, _ in said]
    ended = caption.ids[-1] == model.config.decoder.eos_id
    assert [label for label, _ in panels] == ["<BOS>", *words, *["<EOS>"] * ended]
    assert len(words) > 2 and panels[0][1] is None
    for word in caption.words or ():
        place = said.index((word.text, word.start))
        grid = rows[word.start - 1:word.stop - 1].mean(0)[1:].reshape(4, 3)
        expected = minivl.maps.upsample(grid, viz.shown(geometry, len(panels)))
        torch.testing.assert_close(torch.from_numpy(panels[place + 1][1]), expected, equal_nan=True)
    assert "layer 1 (of 0 to 2), mean of heads 0, 2" in texts["note"] and "[class]" in texts["note"]
    assert (texts["caption"], texts["logprob"]) == (caption.text, pytest.approx(caption.logprob, abs=1e-4))


def test_photos_of_all_shapes_come_one_by_one_to_catr(photos: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    model = minivl.from_state_dict(catr_state())
    assert isinstance(model, Captioner)
    model.preprocessing = Preprocessing((70, 70), MEAN, MEAN, mode="long")
    minivl.save(model, tmp_path / "catr.safetensors")
    drawn = []
    monkeypatch.setattr(viz, "caption_sheet", lambda *args, **texts: drawn.append((*args, texts)))
    monkeypatch.setattr(viz, "save_figure", lambda figure, target: None)
    run("caption", photos, "--weights", tmp_path / "catr.safetensors", "--max-len", 4, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = [photos / "a_turned.jpg", photos / "b_wide.jpg"]
    expected = model.caption(files, max_len=4)
    assert [row["ids"] for row in rows] == [list(caption.ids) for caption in expected]
    assert [photo.size for photo, *_ in drawn] == [(60, 90), (90, 60)]
    for file, caption, (_, panels, texts) in zip(files, expected, drawn):
        images, (geometry,) = minivl.preprocess([file], model)
        record = minivl.AttnRecord(sites=("cross",), layers=[-1])
        model.replay(images, [caption.ids[:-1]], attn=record)
        assert len(panels) == len(caption.ids)  # without a tokenizer every id has one
        grids = record["cross", -1][0].mean(0).reshape(-1, *geometry.grid)  # 70 x 46 or 46 x 70: 5 x 3 or 3 x 5
        for (_, heat), grid in zip(panels[1:], grids, strict=True):
            view = minivl.maps.upsample(grid, viz.shown(geometry, len(panels)))
            torch.testing.assert_close(torch.from_numpy(heat), view)
            assert np.isfinite(heat).all()  # all of the photo was seen
    run("caption", "--weights", tmp_path / "catr.safetensors", "--scenes", 1, "--max-len", 4)
    assert drawn[-1][0].size == (70, 70)
    with pytest.raises(InputError, match=r"no \[class\] token"):
        run("attention", photos, "--weights", tmp_path / "catr.safetensors", "--out", tmp_path / "out")


def test_spans() -> None:
    tokenizer = Tokenizer.train(["an unbelievable umbrella"] * 3, kind="bpe", vocab_size=262)
    pieces = tokenizer.encode("an umbrella")
    ids = (tokenizer.bos_id, *pieces, tokenizer.unk_id or 1, *tokenizer.encode("an"), tokenizer.eos_id)
    caption = Caption(ids, tokenizer.decode(ids), tuple(tokenizer.words(ids)), -1.0, -1.0)
    found = viz.spans(caption, tokenizer, tokenizer.eos_id)
    assert [label for label, _, _ in found] == ["an", "umbrella", "<UNK>", "an", "<EOS>"]
    covered = [place for _, start, stop in found for place in range(start, stop)]
    assert covered == list(range(1, len(ids)))
    cut = Caption(ids[:-1], "", tuple(tokenizer.words(ids[:-1])), -1.0, -1.0)
    assert viz.spans(cut, tokenizer, tokenizer.eos_id)[-1][0] == "an"
    bare = Caption((2, 9, 8, 3), None, None, -1.0, -1.0)
    assert viz.spans(bare, None, 3) == [("#9", 1, 2), ("#8", 2, 3), ("<EOS>", 3, 4)]


def test_look_comes_from_options_then_notes_then_the_last_layer() -> None:
    noted = captioner(notes={"look": {"layer": 1, "heads": [3, 0]}})
    assert viz.look_of(noted, "w", None, None) == (1, (3, 0))
    assert viz.look_of(noted, "w", 2, None) == (2, "mean")  # other heads than those noted may matter there
    assert viz.look_of(noted, "w", None, (1,)) == (1, (1,))
    assert viz.look_of(noted, "w", -3, "mean") == (0, "mean")
    assert viz.look_of(captioner(), "w", None, None) == (2, "mean")
    for look in ({"layer": 1, "heads": [4]}, {"layer": "a"}, {"layer": 1, "heads": []}, [1], 5):
        with pytest.raises(InputError, match="^w: these weights note .* there are 3 layers and 4 heads"):
            viz.look_of(captioner(notes={"look": look}), "w", None, None)


def test_scenes_are_drawn_without_photos(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIVL_WEIGHTS", str(weights.parent))
    monkeypatch.setattr(viz, "SHIPPED", "random")
    monkeypatch.chdir(tmp_path)
    run("caption", "--scenes", 2)
    drawn = sorted((tmp_path / "runs" / "viz").iterdir())
    assert [file.name for file in drawn] == ["scene-20000000.png", "scene-20000001.png"]
    assert capsys.readouterr().out.count("scene-2000000") == 2
    with pytest.raises(InputError, match="--scenes 0"):
        run("caption", "--scenes", 0)


@pytest.mark.parametrize("options, message", [
    (["--layer", 3], "layer 3: there are 3 (0 to 2, or -3 to -1)"),
    (["--heads", "0,4"], "head 4: there are 4"),
    (["--max-len", 9], "need 10 text positions: this decoder has 9"),
    (["--max-len", 9], "--max-len 9 tokens and <BOS>"),
    (["--max-len", 9], "this decoder has 9, give at most 8"),
    (["--beams", 0], "--beams 0: give a whole number, at least 1"),
    (["--scenes", 2], "--scenes: photos are given; give one of the two"),
])
def test_impossible_options(options: list[object], message: str, weights: Path, photos: Path,
                            tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        run("caption", photos, "--weights", weights, "--out", tmp_path, *options)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["caption", "attention", "ranking", "positions", "history"])
def test_where_pictures_cannot_lie_is_said_before_anything_is_read(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    given = ["--weights", "nowhere"] if command != "history" else ["nowhere"]
    given = ["nowhere", *given] if command in ("caption", "attention") else given
    folder = command in ("caption", "attention")
    wrong = "file" if folder else "folder.png"
    for out, message in ((tmp_path / "file" / "x.png", "file/x.png: .*file is a file, no folder can be made there"),
                         (tmp_path / wrong, f"{wrong}: it is a {'file' if folder else 'folder'}")):
        with pytest.raises(InputError, match=f"^--out .*{message}"):
            run(command, *given, "--out", out)


def test_photos_that_cannot_be(weights: Path, photos: Path, tmp_path: Path) -> None:
    wide, other = photos / "b_wide.jpg", tmp_path / "B_wide.png"
    Image.new("RGB", (9, 9)).save(other)
    empty, broken = tmp_path / "empty", tmp_path / "broken.jpg"
    empty.mkdir()
    broken.write_text("no image")
    out = tmp_path / "out"
    for given, options, message in [
            ([wide, other], [], "would both become"), ([photos, wide], [], "would both become"),
            ([empty], [], "holds no photos"), ([tmp_path / "none.jpg"], [], "no such file"),
            ([broken], [], "broken.jpg: is not an image"),
            ([other], ["--out", tmp_path], "would replace the photo"),
            ([wide], ["--out", broken], "a folder is needed")]:
        with pytest.raises(InputError, match=message):
            run("caption", *given, "--weights", weights, "--out", out, *options)
    with pytest.raises(InputError, match="--weights is missing"):
        run("caption", wide, "--out", out)
    assert not out.exists()


def test_weights_of_a_classifier_say_no_captions(photos: Path, tmp_path: Path) -> None:
    model = ViT(encoder(num_classes=5), preprocessing=Preprocessing((64, 48), MEAN, MEAN))
    minivl.save(model, tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match="vit.safetensors: is a classifier"):
        run("caption", photos, "--weights", tmp_path / "vit.safetensors", "--out", tmp_path / "out")
    bare = ViT(encoder())
    minivl.save(bare, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="bare.safetensors: its preprocessing is unknown"):
        run("attention", photos, "--weights", tmp_path / "bare.safetensors", "--out", tmp_path / "out")


# ---- attention

@pytest.mark.parametrize("kind", ["vit", "captioner"])
@pytest.mark.parametrize("heads", ["all", "mean"])
def test_attention_draws_the_class_row(kind: str, heads: str, photos: Path, weights: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "vit":
        model = ViT(encoder(num_classes=4), preprocessing=Preprocessing((64, 48), MEAN, MEAN, 0.9))
        lively(model)
        weights = tmp_path / "vit.safetensors"
        minivl.save(model, weights)
    sheets = []
    monkeypatch.setattr(viz, "attention_sheet", lambda *args, **texts: sheets.append((*args[1:], texts)))
    monkeypatch.setattr(viz, "save_figure", lambda figure, target: None)
    run("attention", photos / "b_wide.jpg", "--weights", weights, "--layer", 0, "--heads", heads,
        "--out", tmp_path)
    (mean, drawn, texts), = sheets
    loaded = minivl.load(weights)
    images, (geometry,) = minivl.preprocess([photos / "b_wide.jpg"], loaded)
    record = minivl.AttnRecord(sites=("encoder",), layers=[0])
    loaded.encode(images, record)
    grid = record["encoder", 0][0, :, 0, 1:].reshape(3, 4, 3)
    shown = viz.shown(geometry, 5 if heads == "all" else 2)
    np.testing.assert_allclose(mean, minivl.maps.upsample(grid.mean(0), shown).numpy(), atol=1e-6)
    assert len(drawn) == (3 if heads == "all" else 0)
    if heads == "all":
        np.testing.assert_allclose(drawn, minivl.maps.upsample(grid, shown).numpy(), atol=1e-6)
    assert "layer 0 (of 0 to 1)" in texts["note"] and texts["title"] == "b_wide.jpg"


def test_attention_needs_a_class_token_and_a_layer(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = ViT(encoder(class_token=False, pool="mean"), preprocessing=Preprocessing((64, 48), MEAN, MEAN))
    minivl.save(model, tmp_path / "mean.safetensors")
    with pytest.raises(InputError, match=r"no \[class\] token"):
        run("attention", photos, "--weights", tmp_path / "mean.safetensors", "--out", tmp_path / "out")
    with pytest.raises(InputError, match="--layer: layer -3: there are 2"):
        run("attention", photos, "--weights", weights, "--layer", -3, "--out", tmp_path / "out")


@pytest.mark.shared
def test_attention_of_a_pretrained_vit_on_real_photos(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data/coco/images").iterdir())[:3]
    run("attention", *files, "--weights", shared / "weights/deit_tiny_patch16_224.timm.safetensors",
        "--out", tmp_path)
    assert sorted(file.stem for file in tmp_path.iterdir()) == [file.stem for file in files]
    for file in tmp_path.iterdir():
        with Image.open(file) as picture:
            assert np.asarray(picture).std() > 20


# ---- history and the program

def test_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.jsonl").write_text(
            '{"step": 1, "loss": 2.5, "lr": 0.1}\n'
            '{"epoch": 1, "step": 1, "train_loss": 2.5, "cider_d": 0.3}\n')
    out = tmp_path / "curves.png"
    run("history", tmp_path / "one", tmp_path / "two", "--out", out)
    assert out.exists() and str(out) in capsys.readouterr().out
    with pytest.raises(InputError, match="twice"):
        run("history", tmp_path / "one", tmp_path / "one", "--out", out)
    with pytest.raises(InputError, match="none: no training history"):
        run("history", tmp_path / "none", "--out", out)


def test_a_mistake_is_one_line_and_code_2(weights: Path, tmp_path: Path) -> None:
    line = [sys.executable, ROOT / "viz.py", "caption", tmp_path / "none.jpg", "--weights", weights]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'none.jpg'}: no such file\n"


@pytest.mark.parametrize("line", [[], ["draw"], ["attention"], ["caption", "--heads", "all"], ["history"]])
def test_wrong_command_lines(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        viz.main(line)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_photo_that_cannot_be_resized_is_named(weights: Path, tmp_path: Path) -> None:
    Image.new("L", (1, 60000)).save(tmp_path / "thin.png")
    with pytest.raises(InputError) as raised:
        run("caption", tmp_path / "thin.png", "--weights", weights, "--out", tmp_path / "out")
    assert str(raised.value).startswith(f"{tmp_path / 'thin.png'}: of 60000 x 1 pixels is too thin")
