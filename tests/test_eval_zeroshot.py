"""eval.zeroshot as a program: a small CLIP trained here finds colours by name, and nothing once names are shuffled."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from PIL import Image
from random_models import randomise
from torch import Tensor

import minivl
from eval import zeroshot
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.metrics.classification import bootstrap_interval
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViT, ViTConfig
from minivl.text.templates import TEMPLATES, prompt
from minivl.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"red": (220, 40, 30), "green": (30, 170, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40),
           "dark_grey": (50, 50, 55), "orange": (240, 140, 30)}
NAMES = list(COLOURS)
WORDS = ["a photo of an orange red green blue yellow dark grey thing", "this is the image no score"]
OWN = ("a photo of a {}.", "this is the {} thing", "no {}, no score.")


def clip(words: Tokenizer | None = None, **changes: Any) -> CLIP:
    words = words or Tokenizer.train(WORDS)
    text = {"max_len": 12, "act": "gelu", **changes}
    return CLIP(CLIPConfig(ViTConfig((16, 16), (8, 8), 32, 1, 2, 48, num_classes=16, pool="mean"),
                           TextConfig(words.vocab_size, 32, 1, 2, 48, 16, bos_id=words.bos_id, eot_id=words.eos_id,
                                      pad_id=words.pad_id, **text)),
                tokenizer=words, preprocessing=Preprocessing((16, 16), (0.5,) * 3, (0.3,) * 3, 1.0))


def photo(name: str, random: np.random.Generator, size: tuple[int, int] = (20, 30)) -> Image.Image:
    """A colour, nearly, under coarse noise."""
    base = np.array(COLOURS[name]) + random.normal(0, 12, 3)
    noise = random.normal(0, 30, (4, 5, 3))
    pixels = Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))
    return pixels.resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def trained() -> CLIP:
    """Knows the colours by name; some seconds of training on photos that no test has."""
    model = clip()
    randomise(model, 1, 0.1)
    model.train().logit_scale.data.fill_(np.log(15.0))
    random, optimiser = np.random.default_rng(99), torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(60):
        images, _ = minivl.preprocess([photo(name, random) for name in NAMES for _ in range(2)], model)
        texts = [prompt(OWN[step % 3], name) for name in NAMES]
        logits = model(images, model.tokenize(texts))  # (12, 6)
        loss = F.cross_entropy(logits, torch.arange(6).repeat_interleave(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3
    return model.eval()


@dataclass
class Place:
    """Photos named {label}_{number}.png, their id2label.json, weights, and where the predictions go."""

    folder: Path
    photos: Path
    weights: Path
    out: Path

    def run(self, *args: object) -> list[list[str]]:
        """Classify; the rows of the file."""
        fixed = ["--images", self.photos, "--weights", self.weights, "--out", self.out]
        zeroshot.main([str(arg) for arg in [*fixed, *args]])
        return rows(self.out)

    def labels(self, table: Any, name: str = "photos/id2label.json") -> Path:
        (self.folder / name).write_text(table if isinstance(table, str) else json.dumps(table))
        return self.folder / name


def rows(file: Path) -> list[list[str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


@pytest.fixture
def place(tmp_path: Path, trained: CLIP) -> Place:
    """Seven photos of each colour; the numbers of the classes begin at 3."""
    found = Place(tmp_path, tmp_path / "photos", tmp_path / "colours-clip.safetensors", tmp_path / "new" / "pred.csv")
    found.photos.mkdir()
    minivl.save(trained, found.weights)
    random = np.random.default_rng(0)
    for label, name in enumerate(NAMES, 3):
        for number in range(7):
            photo(name, random).save(found.photos / f"{label}_{number}.png")
    found.labels(dict(enumerate(NAMES, 3)))
    return found


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@torch.no_grad()
def by_open_clip(model: CLIP, place: Place, templates: list[str], names: list[str]) -> Tensor:
    """(n, V) cosines of the photos with open_clip's zero-shot classifier on these weights."""
    class Theirs:
        def encode_text(self, ids: Tensor, normalize: bool) -> Tensor:
            assert normalize
            return F.normalize(model.encode_text(ids), dim=-1)

    weights = build_zero_shot_classifier(Theirs(), model.tokenize, names, templates)  # (D, V)
    images, _ = minivl.preprocess(sorted(place.photos.glob("*.png")), model)
    return F.normalize(model.encode_image(images), dim=-1) @ weights


# -- what it finds -------------------------------------------------------------------------------------------

def test_it_finds_classes_by_their_names(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    found = place.run("--template", OWN[0], "--json")
    done, scores = told(capsys)
    assert found[0] == ["filename", "label"] and [name for name, _ in found[1:]] == sorted(
        file.name for file in place.photos.glob("*.png"))
    right = sum(name.split("_")[0] == label for name, label in found[1:])
    assert (scores["correct"], scores["photos"], scores["classes"], scores["templates"]) == (right, 42, 6, 1)
    assert scores["top1"] == right / 42 > 0.9 and scores["top5"] >= scores["top1"]
    assert scores["interval"][0] <= scores["top1"] <= scores["interval"][1]
    assert done["photos"] == 42 and done["labelled"] is True
    named = place.run("--template", OWN[0], "--label-names")
    assert [label for _, label in named[1:]] == [NAMES[int(label) - 3] for _, label in found[1:]]


def test_a_shuffled_class_list_fails(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The same photos, weights and templates; only the names stand at other numbers, none at its own."""
    options = [part for text in OWN for part in ("--template", text)]
    place.run(*options, "--json")
    good = told(capsys)
    shuffled = place.labels(dict(enumerate(NAMES[2:] + NAMES[:2], 3)), "shuffled.json")
    place.run(*options, "--json", "--labels", shuffled)
    bad = told(capsys)
    assert len(good) == len(bad) == 5
    for right, wrong in zip(good[1:], bad[1:]):
        assert right["top1"] > 0.9 and wrong["top1"] < 0.1
        assert wrong["interval"][1] < right["interval"][0]
    assert good[0]["signature"] != bad[0]["signature"]


def test_each_template_and_the_ensemble_are_those_of_open_clip(place: Place, trained: CLIP,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    untrained = clip()
    randomise(untrained, 5, 0.3)  # of no use, so that templates differ in what they say
    for model in (untrained, trained):
        minivl.save(model, place.weights)
        options = [part for text in OWN for part in ("--template", text)]
        place.run(*options, "--json", "--each", "--articles", "keep", "--workers", 0)
        lines, truth = told(capsys), np.repeat(np.arange(6), 7)
        names = [name.replace("_", " ") for name in NAMES]
        expected = [by_open_clip(model, place, [text], names) for text in OWN]
        together = by_open_clip(model, place, list(OWN), names)
        for number, (line, text, cosines) in enumerate(zip(lines[1:4], OWN, expected), 1):
            guesses = cosines.argmax(1).numpy()
            assert line["template"] == text and line["correct"] == (guesses == truth).sum()
            assert line["agrees"] == (guesses == together.argmax(1).numpy()).sum()
            assert line["interval"] == list(bootstrap_interval(guesses == truth))
            assert [int(label) - 3 for _, label in rows(place.out.with_name(f"pred-{number}.csv"))[1:]] == [*guesses]
        assert [int(label) - 3 for _, label in rows(place.out)[1:]] == together.argmax(1).tolist()
        assert lines[4]["templates"] == 3 and lines[4]["correct"] == (together.argmax(1).numpy() == truth).sum()
        if model is untrained:
            guesses = [tuple(cosines.argmax(1).tolist()) for cosines in (*expected, together)]
            assert len(set(guesses)) > 2
    assert sorted(file.name for file in place.out.parent.iterdir()) == [
        "pred-1.csv", "pred-2.csv", "pred-3.csv", "pred.csv"]


@pytest.mark.parametrize("photos", [1, 2, 30])
def test_intervals_are_those_of_the_metric(photos: int) -> None:
    correct = torch.rand(4, photos, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0], [0.2], [0.7], [1]])
    assert zeroshot.intervals(correct, 3) == [bootstrap_interval(row, seed=3) for row in correct]


def test_texts_are_computed_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = CLIP.encode_text
    monkeypatch.setattr(CLIP, "encode_text", lambda self, ids: seen.append(len(ids)) or encode(self, ids))
    place.run(*[part for text in OWN for part in ("--template", text)])
    assert seen == [18]  # three templates, six classes, one pass


def test_published_sets(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                        caplog: pytest.LogCaptureFixture) -> None:
    asked: list[list[str]] = []
    tokenize = CLIP.tokenize
    monkeypatch.setattr(CLIP, "tokenize", lambda self, texts: asked.append(list(texts)) or tokenize(self, texts))
    place.run("--templates", "course", "--template", "a photo of a {}.", "--json")
    assert asked.pop() == [
        *(f"This is a photo of a {name.replace('_', ' ')}" for name in NAMES),
        *(f"This is a {name.replace('_', ' ')} image." for name in NAMES),
        *(f"No {name.replace('_', ' ')}, no score." for name in NAMES),
        *(f"a photo of {'an' if name == 'orange' else 'a'} {name.replace('_', ' ')}." for name in NAMES)]
    lines = told(capsys)
    assert "|templates:course+own(4)|articles:auto|classes:6|texts:" in lines[0]["signature"]
    assert lines[0]["signature"].startswith("zero-shot|clip:colours-clip@")
    assert lines[0]["signature"].endswith("|tok:eot-kept|v1")
    place.run("--templates", "course", "--articles", "mend")
    assert "This is an orange image." in asked.pop()
    place.run("--template", "a photo of a {}.", "--articles", "keep")
    assert "a photo of a orange." in asked.pop()
    place.run("--templates", "imagenet")
    assert len(asked.pop()) % 256 in (480 % 256, 256) and "longer than this CLIP has room" not in caplog.text
    assert len(TEMPLATES["imagenet"]) == 80


def test_what_is_printed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.run(*[part for text in OWN for part in ("--template", text)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{place.out}: the classes of 42 photos by the ensemble of 3 templates"
    assert lines[1].startswith("zero-shot|clip:colours-clip@") and lines[2].split() == [
        "top-1", "95", "%", "interval", "template"]
    for line, text in zip(lines[3:6], OWN):
        assert line.endswith(f"  {text}") and " to " in line
    assert lines[6] == "the ensemble of 3 templates" and lines[7].startswith("top-1           ")
    place.run(*[part for text in OWN for part in ("--template", text)], "--unlabelled")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "as the ensemble  template" and len(lines) == 6
    assert all(" of 42 " in line for line in lines[3:])


def test_folders_of_classes_and_photos_without_labels(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(place.run("--template", OWN[0], "--json")[1:])
    scores = told(capsys)[1]
    for file in sorted(place.photos.glob("*.png")):
        folder = place.photos / NAMES[int(file.name.split("_")[0]) - 3]
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    found = place.run("--template", OWN[0], "--json")
    assert told(capsys)[1]["correct"] == scores["correct"]
    assert {name.split("/")[1]: label for name, label in found[1:]} == before
    for folder in list(place.photos.iterdir()):
        if folder.is_dir():
            folder.rename(place.photos / f"shelf of {len(folder.name)}{folder.name[0]}")
    place.run("--template", OWN[0])
    found = capsys.readouterr().out
    assert "(no labels in the names of these files or of the folders they lie in, hence no scores)" in found


def test_the_picture(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    target = place.folder / "pictures" / "top5.png"
    place.run("--template", OWN[0], "--top5", target, "--top5-photos", 5, "--json")
    drawn = told(capsys)[-1]
    assert drawn["picture"] == str(target) and len(drawn["shown"]) == 5 == len(set(drawn["shown"]))
    with Image.open(target) as picture:
        first = np.asarray(picture.convert("RGB"))
    place.run("--template", OWN[0], "--top5", target, "--top5-photos", 5, "--seed", 1, "--json")
    assert told(capsys)[-1]["shown"] != drawn["shown"]
    with Image.open(target) as picture:
        other = np.asarray(picture.convert("RGB"))
    assert other.shape != first.shape or (other != first).any()
    for file in sorted(place.photos.glob("*.png"))[3:]:
        file.unlink()
    place.run("--template", OWN[0], "--top5", target, "--top5-photos", 300)
    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {target}"


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, lines", [
    (["--template", "a photo"], "--template: the template 'a photo' has no {}, where"),
    (["--template", "{0}"], "the template '{0}' has no {}"),
    ([], 'give --template "a photo of a {}." (once or several times) or --templates (course, imagenet, '),
    (["--template", OWN[0], "--template", OWN[0]], "--template 'a photo of a {}.' is there twice"),
    (["--templates", "course", "--template", "No {}, no score."], "--template 'No {}, no score.' is there twice"),
    (["--template", OWN[0], "--top5", "top5.jpg"], "--top5 top5.jpg: the picture is written as a .png"),
    (["--template", OWN[0], "--top5-photos", "3"], "--top5-photos 3: nothing is drawn without --top5"),
    (["--template", OWN[0], "--top5", "a.png", "--top5-photos", "0"], "--top5-photos 0: give 1 to 300"),
    (["--template", OWN[0], "--labels", "nowhere.json"], "nowhere.json: no such file"),
    (["--template", OWN[0], "--images", "nowhere"], "nowhere: no such folder"),
    (["--template", OWN[0], "--out", "pred.txt"], "--out pred.txt: the predictions"),
    (["--template", OWN[0], "--weights", "nowhere"], "nowhere: no such file"),
    (["--template", OWN[0], "--seed", "-1"], "--seed -1")])
def test_options_that_cannot_be(options: list[str], lines: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    with pytest.raises(InputError) as raised:
        place.run(*options)
    assert lines in str(raised.value) and "\n" not in str(raised.value) and not place.out.parent.exists()


@pytest.mark.parametrize("table, line", [
    ("", "id2label.json: is not JSON"), ("{}", "id2label.json: is dict, or empty"), ("[]", "id2label.json: is list"),
    ({"3": "red"}, "id2label.json: has one class (red)"),
    ({"3": "red", "4": "dark grey", "5": "Dark_Grey"}, "classes 4 and 5 have one name ('dark grey' and 'Dark_Grey')"),
    ({"3": "red", "4": "_"}, "class 4 is called '_', which says nothing"),
    ({"3": "red", "4": 5}, "has the entry '4': 5"),
    ({"3": "red", "4": "green"}, "28 of 42 photos do not begin with a number or name of"),
    ({**dict(enumerate(NAMES[:4], 3)), 7: "puce", 8: "mauve"}, "'a photo of a {}.' is the same text to this CLIP for "
     "'puce' and 'mauve': its tokenizer does not tell them apart"),
    ({**dict(enumerate(NAMES[:4], 3)), 7: "red " * 20 + "blue", 8: "red " * 20 + "green"}, "what differs comes after "
     "the 10 pieces it has room for")])
def test_classes_that_cannot_be(table: Any, line: str, place: Place) -> None:
    place.labels(table)
    with pytest.raises(InputError) as raised:
        place.run("--template", OWN[0])
    assert line in str(raised.value) and "\n" not in str(raised.value) and not place.out.parent.exists()


def test_no_class_list_at_all(place: Place) -> None:
    (place.photos / "id2label.json").unlink()
    with pytest.raises(InputError, match="photos: has no id2label.json, neither itself nor the two folders above: "
                                         "give --labels"):
        place.run("--template", OWN[0])


def test_strange_and_long_names_are_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.labels({**dict(enumerate(NAMES[:5], 3)), 8: "orange puce " * 9})
    with caplog.at_level(logging.WARNING):
        place.run("--template", OWN[0])
    assert "1 of 6 class names have words that this CLIP does not know: 'orange puce" in caplog.text
    assert "1 of 6 texts are longer than this CLIP has room for (10 pieces); they are cut before" in caplog.text


def no_tokenizer() -> CLIP:
    model = clip()
    model.tokenizer = None
    return model


def unseen() -> CLIP:
    model = clip()
    model.preprocessing = None
    return model


def nan() -> CLIP:
    model = clip()
    torch.nn.init.constant_(model.visual.head.weight, float("nan"))  # type: ignore[arg-type, union-attr]
    return model


@pytest.mark.parametrize("make, line", [
    (lambda: ViT(ViTConfig((16, 16), (8, 8), 12, 1, 3, 24, num_classes=6)), "colours-clip.safetensors: is a vit"),
    (no_tokenizer, "has no tokenizer"), (unseen, "its preprocessing is unknown"), (nan, "not numbers")])
def test_weights_that_cannot_be(make: Any, line: str, place: Place) -> None:
    minivl.save(make(), place.weights)
    with pytest.raises(InputError) as raised:
        place.run("--template", OWN[0])
    assert line in str(raised.value) and "\n" not in str(raised.value) and not place.out.parent.exists()


def test_an_unreadable_photo_is_one_line(place: Place) -> None:
    broken = place.photos / "5_3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    line = [sys.executable, "-m", "eval.zeroshot", "--images", place.photos, "--weights", place.weights, "--out",
            place.out, "--template", OWN[0]]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.splitlines()[-1].split("\r")[-1].strip()
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert last.startswith(f"error: {broken}: cannot be opened as an image") and not place.out.parent.exists()
