"""eval.classify as a program: which class it writes for which photo, where labels come from, what a mistake says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from catr_reference import catr_state
from PIL import Image
from random_models import randomise

import minivl
from eval import classify
from minivl import programs
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.metrics.classification import bootstrap_interval, top_k
from minivl.models.clip import CLIP, CLIPConfig, TextConfig
from minivl.models.vit import ViT, ViTConfig

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("cat", "dog", "guinea pig", "newt", "owl", "rat")
PREPROCESSING = Preprocessing((16, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.9)


def vit(names: tuple[str, ...] | None = NAMES, preprocessing: Preprocessing | None = PREPROCESSING,
        classes: int = 6) -> ViT:
    """Random weights that say something else of every other photo."""
    model = ViT(ViTConfig((16, 24), (8, 8), 12, 2, 3, 24, num_classes=classes, pool="mean"),
                preprocessing=preprocessing, class_names=names)
    randomise(model, scale=0.4)
    with torch.no_grad():  # more of the photo, less of what is the same for all of them
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name in ("pos_embed", "cls_token"):
                parameter.mul_(0.1)
    return model


def save(model: Any, folder: Path) -> Path:
    minivl.save(model, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def draw(folder: Path, *names: str, seed: int = 0) -> None:
    """Photos of large blots of colour, each another."""
    random = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (2, 3, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC).save(folder / name)


def table(folder: Path, names: Any = NAMES, first: int = 0) -> Path:
    (folder / "id2label.json").write_text(json.dumps({first + number: name for number, name in enumerate(names)}))
    return folder / "id2label.json"


def logits(model: ViT, folder: Path, names: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model(minivl.preprocess([folder / name for name in names], model)[0])


def run(*args: object) -> None:
    classify.main([str(arg) for arg in args])


@dataclass
class Place:
    """Photos, weights and where the predictions go."""

    photos: Path
    weights: Path
    out: Path

    def run(self, *args: object) -> list[list[str]]:
        """Classify; the rows of the file."""
        run("--images", self.photos, "--weights", self.weights, "--out", self.out, *args)
        return self.rows()

    def rows(self) -> list[list[str]]:
        with open(self.out, newline="", encoding="utf-8") as opened:
            return list(csv.reader(opened))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "photos", save(vit(), tmp_path), tmp_path / "new" / "pred.csv")


# -- predictions ---------------------------------------------------------------------------------------------

def test_photos_without_labels(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a, b.png", "b.jpg", 'c "d".png', "e/f.png", "e/g/h.PNG", "z.png"]
    draw(place.photos, *reversed(names))
    (place.photos / "notes.txt").write_text("no photo")
    rows = place.run("--batch-size", 4)
    expected = logits(vit(), place.photos, names).argmax(1).tolist()
    assert rows == [["filename", "label"], *([name, str(label)] for name, label in zip(names, expected))]
    assert len(set(expected)) > 2
    assert capsys.readouterr().out == (f"{place.out}: the classes of 6 photos (no labels in their names, hence no "
                                       "scores)\n")
    assert place.out.read_bytes().count(b"\r") == 0 and list(place.out.parent.iterdir()) == [place.out]
    assert place.run("--label-names")[1:] == [[name, NAMES[label]] for name, label in zip(names, expected)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_workers_change_nothing(workers: int, place: Place) -> None:
    draw(place.photos, *(f"{number}.png" for number in range(7)))
    assert place.run("--batch-size", 3, "--workers", workers) == place.run()


def scored(place: Place, names: list[str], labels: list[int], capsys: pytest.CaptureFixture[str],
           *options: object) -> dict[str, Any]:
    """The scores of a run as JSON, which must be those of the library at these labels."""
    place.run("--json", *options)
    done, told = map(json.loads, capsys.readouterr().out.splitlines())
    assert done == {"path": str(place.out), "photos": len(names), "labelled": True}
    found = logits(vit(), place.photos, names)
    truth = torch.tensor(labels)
    correct = found.argmax(1) == truth
    assert (told["top1"], told["correct"], told["photos"]) == (
        pytest.approx(float(correct.float().mean())), int(correct.sum()), len(names))
    assert told["top5"] == pytest.approx(float(top_k(found, truth, 5).float().mean()))
    assert told["interval"] == list(bootstrap_interval(correct)) and told["classes"] == len(set(labels))
    shares = [correct[truth == one].float().mean() for one in set(labels)]
    assert told["mean_per_class"] == pytest.approx(np.mean(shares))
    assert sum(pair["photos"] for pair in told["confusions"]) == int((~correct).sum())
    return told


def labelled(place: Place, count: int = 12) -> tuple[list[str], list[int]]:
    """Photos drawn flat, and for each a label: right for two thirds of them."""
    names = [f"{number:02d}.png" for number in range(count)]
    draw(place.photos, *names)
    guesses = logits(vit(), place.photos, names).argmax(1).tolist()
    assert len(set(guesses)) > 2
    return names, [guess if number % 3 else (guess + 1) % 6 for number, guess in enumerate(guesses)]


def renamed(place: Place, names: list[str], new: list[str]) -> list[str]:
    for old, name in zip(names, new):
        (place.photos / name).parent.mkdir(exist_ok=True)
        (place.photos / old).rename(place.photos / name)
    return new


def test_folders_of_classes(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    names, labels = labelled(place)
    names = renamed(place, names, [f"{NAMES[label]}/{name}" for name, label in zip(names, labels)])
    told = scored(place, names, labels, capsys)
    assert told["correct"] == 8 and all({pair["true"], pair["predicted"]} < {*NAMES} for pair in told["confusions"])
    place.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"top-1           {8 / 12:.4f}  95 % interval ")
    assert lines[1].endswith("(8 of 12 photos)")
    assert lines[2].startswith("top-5           ") and "of 6 classes occur" in lines[3]
    assert " -> " in lines[5] and lines[4] == "most frequent confusions (photos: class -> taken for)"


@pytest.mark.parametrize("where", ["beside", "above", "given"])
@pytest.mark.parametrize("named", [False, True])
def test_the_course_layout(where: str, named: bool, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    names, labels = labelled(place)
    begins = [NAMES[label].replace(" ", "_").title() if named else str(label) for label in labels]
    names = renamed(place, names, [f"{begin}_{name}" for begin, name in zip(begins, names)])
    if where == "given":
        (other := place.photos.parent / "other").mkdir()
        scored(place, names, labels, capsys, "--labels", table(other))
    else:
        table(place.photos if where == "beside" else place.photos.parent)
        scored(place, names, labels, capsys)


def test_numbers_and_order_are_those_of_the_table(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """It numbers the classes from 1 and backwards; the weights say which output is which by name."""
    names, labels = labelled(place)
    file = table(place.photos.parent, NAMES[::-1], first=1)
    names = renamed(place, names, [f"{6 - label}_{name}" for name, label in zip(names, labels)])
    scored(place, names, labels, capsys)
    guesses = dict(zip(names, logits(vit(), place.photos, names).argmax(1).tolist()))
    rows = [[name, str(6 - guesses[name])] for name in sorted(names)]
    assert place.rows()[1:] == rows == place.run("--labels", file)[1:]
    assert place.run("--label-names")[1:] == [[name, NAMES[guesses[name]]] for name, _ in rows]


def test_folders_by_number_and_names_of_digits(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A name of the weights comes before a number: classes called 0, 1, 10 are in this order."""
    names, labels = labelled(place)
    names = renamed(place, names, [f"{label}/{name}" for name, label in zip(names, labels)])
    place.run()
    assert "no labels" in capsys.readouterr().out  # nobody says what the numbers mean
    scored(place, names, labels, capsys, "--labels", table(place.photos.parent))
    (place.photos.parent / "id2label.json").unlink()
    save(vit(("0", "1", "10", "11", "2", "3")), place.photos.parent)
    places = {"0": 0, "1": 1, "2": 4, "3": 5}
    kept = [name for name in names if name[0] in places]
    for name in {*names} - {*kept}:
        (place.photos / name).unlink()
    scored(place, kept, [places[name[0]] for name in kept], capsys)


def test_weights_without_names(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    names, labels = labelled(place)
    save(vit(None), place.photos.parent)
    assert [label for _, label in place.run()[1:]] == [
        str(label) for label in logits(vit(), place.photos, names).argmax(1).tolist()]
    with pytest.raises(InputError, match="--label-names: neither .* name the classes"):
        place.run("--label-names")
    names = renamed(place, names, [f"{label}_{name}" for name, label in zip(names, labels)])
    place.run()
    assert "no labels" in capsys.readouterr().out
    table(place.photos)
    told = scored(place, names, labels, capsys)
    assert told["confusions"][0]["true"] in NAMES
    assert place.run("--unlabelled") and len(capsys.readouterr().out.splitlines()) == 1


def noted(place: Place, id2label: Any, names: tuple[str, ...] | None = NAMES) -> None:
    """The weights, with what train_p1.py notes in their header."""
    minivl.save(vit(names), place.weights, about={"program": "train_p1.py", "id2label": id2label})


@pytest.mark.parametrize("names", [NAMES, None])
def test_numbers_that_the_weights_note(names: Any, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any id2label.json they are written, and labels are read by them; 2 stands before 10 and 11."""
    ids = [2, 3, 5, 10, 11, 40]
    noted(place, dict(zip(ids, NAMES)), names)
    photos, labels = labelled(place)
    guesses = logits(vit(), place.photos, photos).argmax(1).tolist()
    rows = [[name, str(ids[guess])] for name, guess in zip(photos, guesses)]
    assert place.run()[1:] == rows == place.run("--unlabelled")[1:]
    assert "no labels" in capsys.readouterr().out
    assert place.run("--label-names")[1:] == [[name, NAMES[guess]] for name, guess in zip(photos, guesses)]
    capsys.readouterr()
    photos = renamed(place, photos, [f"{ids[label]}_{name}" for name, label in zip(photos, labels)])
    scored(place, photos, labels, capsys)
    (place.photos / photos[0]).rename(place.photos / f"7_{photos[0]}")
    with pytest.raises(InputError, match="1 of 12 photos do not begin with a number or name of .*weights.safetensors"):
        place.run()


def test_a_file_comes_before_what_the_weights_note(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    noted(place, dict(zip(range(20, 26), NAMES)))
    photos, labels = labelled(place)
    photos = renamed(place, photos, [f"{label}_{name}" for name, label in zip(photos, labels)])
    assert {int(label) for _, label in place.run()[1:]} <= {*range(20, 26)}  # numbers of another list: no labels
    assert "no labels" in capsys.readouterr().out
    table(place.photos)
    scored(place, photos, labels, capsys)
    assert {int(label) for _, label in place.rows()[1:]} <= {*range(6)}


@pytest.mark.parametrize("id2label, told", [
    ([1], "its minivl header is damaged: about.id2label is list"), ({}, "about.id2label is dict, or empty"),
    ({"a": "cat"}, "about.id2label has the entry 'a': 'cat'"), ({"0": 3}, "about.id2label has the entry '0': 3"),
    (dict(enumerate(NAMES[:4])), "weights.safetensors: has 4 classes, the head of")])
def test_notes_that_cannot_be(id2label: Any, told: str, place: Place) -> None:
    draw(place.photos, "a.png")
    noted(place, id2label)
    with pytest.raises(InputError) as raised:
        place.run()
    assert told in str(raised.value) and str(raised.value).startswith(str(place.weights))
    assert not place.out.parent.exists()


def test_classes_of_one_name(place: Place, capsys: pytest.CaptureFixture[str],
                             caplog: pytest.LogCaptureFixture) -> None:
    """They are told apart by their numbers, as ImageNet's two cranes."""
    names, labels = labelled(place)
    save(vit(("crane",) * 6), place.photos.parent)
    table(place.photos, ("crane",) * 6)
    names = renamed(place, names, [f"{label}_{name}" for name, label in zip(names, labels)])
    told = scored(place, names, labels, capsys)
    assert {pair["true"] for pair in told["confusions"]} <= {f"crane ({number})" for number in range(6)}
    assert {label for _, label in place.run("--label-names")[1:]} == {"crane"} and "tell apart" in caplog.text


def test_precision_acts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(place.photos, "a.png")
    seen = []
    forward = ViT.forward
    monkeypatch.setattr(ViT, "forward", lambda self, images: seen.append(torch.ones(2, 2) @ torch.ones(2, 2)) or
                        forward(self, images))
    for precision in ("fp32", "bf16"):
        place.run("--precision", precision, "--device", "cpu")
    assert [product.dtype for product in seen] == [torch.float32, torch.bfloat16]


def test_progress_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(programs, "progress", lambda items, **options: told.append(options) or items)
    draw(place.photos, *(f"{number}.png" for number in range(5)))
    place.run("--batch-size", 2)
    assert told == [{"total": 3, "desc": "classifying"}]


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photo_is_named_and_nothing_is_written(workers: int, place: Place) -> None:
    draw(place.photos, *(f"{number}.png" for number in range(5)))
    place.out.parent.mkdir()
    place.out.write_text("old")
    (place.photos / "3.png").write_bytes((place.photos / "3.png").read_bytes()[:60])
    line = [sys.executable, "-m", "eval.classify", "--images", place.photos, "--weights", place.weights, "--out",
            place.out, "--batch-size", "2", "--workers", str(workers)]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.splitlines()[-1].split("\r")[-1].strip()
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert last.startswith(f"error: {place.photos / '3.png'}: cannot be opened as an image") and "Traceback" not in last
    assert place.out.read_text() == "old" and list(place.out.parent.iterdir()) == [place.out]


@pytest.mark.parametrize("names, words, told", [
    (["6_a.png", "1_b.png"], NAMES, "photos: 1 of 2 photos do not begin with a number or name of"),
    (["7_a.png", "8_b.png"], NAMES, "2 of 2 photos do not begin with a number or name of"),  # labels, but none of these
    (["1_a.png", "b.png"], NAMES, "do not begin with a number or name of"),
    (["dog_a.png", "horse_b.png"], NAMES, "horse_b.png; there are 6 classes (cat, dog, guinea pig and 3 more); "),
    (["dog/a.png", "horse/b.png", "c.png"], None, "2 of 3 photos do not lie in a folder called as a class of"),
    (["1_a.png"], NAMES[:5], "id2label.json: has 5 classes, the head of"),
    (["1_a.png"], (*NAMES[:5], "horse"), "id2label.json: its classes are not those of"),
    (["1_a.png"], (*NAMES[:5], "cat"), "its classes are not those of")])
def test_labels_that_cannot_be(names: list[str], words: Any, told: str, place: Place) -> None:
    draw(place.photos, *names)
    if words:
        table(place.photos, words)
    with pytest.raises(InputError) as raised:
        place.run()
    assert told in str(raised.value) and "--unlabelled" in str(raised.value)
    assert not place.out.parent.exists()
    assert len(place.run("--unlabelled")) == 1 + len(names)


def clip() -> CLIP:
    return CLIP(CLIPConfig(ViTConfig((8, 8), (4, 4), 12, 1, 3, 24, num_classes=7),
                           TextConfig(20, 8, 1, 2, 16, 7, bos_id=1, eot_id=2)))


def nan() -> ViT:
    model = vit()
    torch.nn.init.constant_(model.head.bias, float("nan"))  # type: ignore[arg-type, union-attr]
    return model


@pytest.mark.parametrize("make, told", [
    (clip, "weights.safetensors: is a clip, which has no classes"),
    (lambda: minivl.from_state_dict(catr_state()), "weights.safetensors: is a captioner"),
    (lambda: vit(None, classes=0), "weights.safetensors: has no head"),
    (lambda: vit(preprocessing=None), "weights.safetensors: its preprocessing is unknown"),
    (nan, "a.png: what ")])
def test_weights_that_cannot_classify(make: Any, told: str, place: Place) -> None:
    draw(place.photos, "a.png")
    save(make(), place.photos.parent)
    with pytest.raises(InputError) as raised:
        place.run()
    assert told in str(raised.value) and not place.out.parent.exists()


@pytest.mark.parametrize("options, told", [
    (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
    (["--out", "pred.txt"], "--out pred.txt: the predictions"),
    (["--out", "."], ".csv file"), (["--out", "weights.safetensors/pred.csv"], "weights.safetensors is a file"),
    (["--images", "none"], "none: no such folder"), (["--images", "weights.safetensors"], "is a file, a folder of"),
    (["--images", "empty"], "empty: holds no pictures"), (["--labels", "none.json"], "none.json: no such file"),
    (["--labels", "list.json"], "list.json: is list"), (["--seed", "-1"], "--seed -1")])
def test_options_that_cannot_be(options: list[str], told: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(place.photos, "a.png")
    monkeypatch.chdir(place.photos.parent)
    Path("empty").mkdir()
    Path("list.json").write_text("[1]")
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError) as raised:
        run("--images", "photos", "--weights", "nowhere.safetensors", "--out", "out/pred.csv", *options)
    assert told in str(raised.value) and "\n" not in str(raised.value) and sorted(Path().rglob("*")) == before


# -- a published model ---------------------------------------------------------------------------------------

@pytest.mark.shared
@pytest.mark.slow
def test_deit_tiny_on_imagenet(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """timm's own model, at its own crop of 0.9, finds 384 of these 500."""
    weights = shared / "weights/deit_tiny_patch16_224.timm.safetensors"
    run("--images", shared / "data/imagenet_sample", "--weights", weights, "--out", tmp_path / "pred.csv", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[1])
    assert (told["correct"], told["photos"], told["classes"]) == (384, 500, 500)
    assert told["mean_per_class"] == pytest.approx(0.768) and told["top5"] > 0.92
    assert told["interval"][0] < 0.768 < told["interval"][1]
    with open(tmp_path / "pred.csv", newline="") as opened:
        rows = list(csv.reader(opened))
    assert len(rows) == 501 and sum(name.split("_")[0] == label for name, label in rows) == 384
