"""The program that trains classifiers, from folders of pictures to weights, and every way it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

import minivl
import train_p1
from minivl.errors import InputError
from minivl.files import read_header
from minivl.images import Preprocessing
from minivl.models.clip import CLIP, CLIPConfig
from minivl.models.presets import PRESETS
from minivl.models.vit import ViT, ViTConfig
from minivl.train import step as step_module
from minivl.train.classifying import ClassifyTask
from minivl.train.run import read_history

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("apple", "berry", "cherry")
PREPROCESSING = Preprocessing((16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), mode="squash")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def picture(label: int, number: int) -> Image.Image:
    """Noise, brighter in the channel of its class."""
    pixels = np.random.default_rng([label, number]).integers(0, 160, (20, 24, 3), dtype=np.uint8)
    pixels[..., label] += 90
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``folders/{train,val}/CLASS/``, ``course/{train,validation}/ID_*.png`` of the same, and ``vit.safetensors``."""
    folder = tmp_path_factory.mktemp("data")
    for split, first, last in (("train", 0, 8), ("val", 8, 12)):
        course = folder / "course" / {"val": "validation"}.get(split, split)
        course.mkdir(parents=True)
        for label, name in enumerate(NAMES):
            (folder / "folders" / split / name).mkdir(parents=True)
            for number in range(first, last):
                picture(label, number).save(folder / "folders" / split / name / f"{number}.png")
                picture(label, number).save(course / f"{10 * label}_{number}.png")
    (folder / "course" / "id2label.json").write_text(json.dumps({10 * at: name for at, name in enumerate(NAMES)}))
    minivl.save(vit(5), folder / "vit.safetensors")
    return folder


def vit(classes: int) -> ViT:
    torch.manual_seed(1)
    return ViT(ViTConfig((16, 16), (8, 8), 16, 2, 2, 24, num_classes=classes), preprocessing=PREPROCESSING)


def options(data: Path, out: Path, /, *more: str, **changes: Any) -> list[str]:
    """Two epochs of six steps; None leaves an option out."""
    told = {"data": data / "folders", "init": data / "vit.safetensors", "out": out, "epochs": 2, "batch_size": 4,
            "lr": 0.01, "warmup": 2, "precision": "fp32", "device": "cpu", **changes}
    return [str(word) for key, value in told.items() if value is not None
            for word in (f"--{key.replace('_', '-')}", value)] + list(more)


def train(data: Path, out: Path, /, *more: str, **changes: Any) -> ViT:
    """A run; the weights that were best."""
    train_p1.main(options(data, out, *more, **changes))
    return best(out)


def best(out: Path) -> ViT:
    model = minivl.load(out / "best.safetensors", verify=True)
    assert isinstance(model, ViT)
    return model


def story(folder: Path) -> list[dict[str, Any]]:
    """The history without its clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_history(folder)]


def about(file: Path) -> dict[str, Any]:
    """What a weight file says of where it comes from."""
    return json.loads(read_header(file)[1]["minivl"])["about"]


# -- runs ----------------------------------------------------------------------------------------------------

def test_a_run_on_folders_of_classes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = train(data, tmp_path / "run", epochs=6)
    out = capsys.readouterr().out
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "best.safetensors", "last.safetensors", "checkpoint.safetensors", "history.jsonl", "history.png", "config.json"}
    assert model.class_names == NAMES and model.preprocessing == PREPROCESSING and model.config.drop_path == 0
    rows = [row for row in story(tmp_path / "run") if "epoch" in row]
    assert len(rows) == 6 and rows[-1]["top1"] > 0.9 and rows[-1]["train_loss"] < 0.5 < rows[0]["train_loss"]
    assert "a new head of 3 classes in place of the one of 5" in out
    assert "24 training and 12 validation pictures of 3 classes (apple, berry, cherry)" in out
    told = max(rows, key=lambda row: row["top1"])
    assert f"best: top-1 {told['top1']:.4f} of 12 validation pictures after epoch {told['epoch']}" in out
    # the saved weights score as was said
    files = sorted((data / "folders" / "val").glob("*/*.png"))
    with torch.no_grad():
        found = model(minivl.preprocess(files, model)[0]).argmax(1)
    assert (found == torch.arange(12) // 4).float().mean() == pytest.approx(told["top1"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["lr"] == 0.01 and config["steps_per_epoch"] == 6 and config["optimizer"] == "adamw"
    with Image.open(tmp_path / "run" / "history.png") as image:
        assert image.size[0] > 600


def test_the_course_layout_is_the_same_run(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "one")
    train(data, tmp_path / "two", data=data / "course")
    assert story(tmp_path / "one") == story(tmp_path / "two")
    header = about(tmp_path / "two" / "best.safetensors")
    assert header["id2label"] == {"0": "apple", "10": "berry", "20": "cherry"} and "scores" in header
    assert "id2label" not in about(tmp_path / "one" / "best.safetensors")


def test_a_share_to_validate_with(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(data, tmp_path / "run", "--json", data=data / "folders" / "train", val_fraction=0.25, epochs=1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {"images": 18, "val_images": 6, "classes": 3}
    assert {key: value for key, value in lines[1].items() if key in told} == told and len(lines) == 4
    assert lines[-1]["best"] == str(tmp_path / "run" / "best.safetensors")


def test_built_in_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, train_p1.SMALL, replace(PRESETS[train_p1.SMALL], config=ViTConfig(
        (32, 32), (8, 8), 16, 1, 2, 24, stem=(4, 6, 8))))
    model = train(tmp_path, tmp_path / "run", data=None, init=None, scenes=6, val_scenes=4, epochs=1)
    assert model.class_names is not None and len(model.class_names) == model.config.num_classes > 3


def test_a_probe_trains_the_head_alone(data: Path, tmp_path: Path) -> None:
    """The same on features computed once as on pictures (a crop of all of the picture forces them)."""
    probe = train(data, tmp_path / "probe", freeze="encoder", lr=0.1, epochs=4)
    start = vit(5).state_dict()
    moved = {name for name, tensor in probe.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {"head.weight", "head.bias"}
    rows = [row for row in story(tmp_path / "probe") if "epoch" in row]
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    mixed = train(data, tmp_path / "mixed", freeze="encoder", lr=0.1, epochs=1, mixup=0.5, flip=0.5, drop_path=0.3)
    assert {name for name, tensor in mixed.state_dict().items() if not torch.equal(tensor, start[name])} == moved


def test_heads_and_sizes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(data, tmp_path / "one", epochs=1)
    again = {"init": tmp_path / "one" / "best.safetensors", "epochs": 1, "lr": 0.0}
    capsys.readouterr()
    kept = train(data, tmp_path / "kept", **again)
    assert torch.equal(kept.head.weight, first.head.weight) and "new head" not in capsys.readouterr().out
    fresh = train(data, tmp_path / "fresh", "--reinit-head", **again)
    assert not torch.equal(fresh.head.weight, first.head.weight) and "new head" in capsys.readouterr().out
    assert torch.equal(fresh.pos_embed, first.pos_embed)
    large = train(data, tmp_path / "large", image_size=32, fit="crop", **again)
    wanted = minivl.load(tmp_path / "one" / "best.safetensors", image_size=32)
    assert isinstance(wanted, ViT) and torch.equal(large.pos_embed, wanted.pos_embed)
    assert large.preprocessing is not None and large.preprocessing.size == (32, 32)
    assert large.preprocessing.mode == "crop" and torch.equal(large.head.weight, first.head.weight)


def test_the_image_tower_of_a_clip(data: Path, tmp_path: Path) -> None:
    vision = ViTConfig((16, 16), (8, 8), 16, 2, 2, 24, num_classes=512, pre_norm=True, patch_bias=False,
                       head_bias=False)
    torch.manual_seed(0)
    preset = next(preset for preset in PRESETS.values() if isinstance(preset.config, CLIPConfig))
    text = replace(preset.config.text, width=8, depth=1, num_heads=2, mlp_dim=16)
    clip = CLIP(replace(preset.config, vision=vision, text=text), preprocessing=PREPROCESSING)
    minivl.save(clip, tmp_path / "clip.safetensors")
    model = train(data, tmp_path / "run", init=tmp_path / "clip.safetensors", layer_decay=0.5, epochs=1)
    assert model.config.pre_norm and model.head.bias is not None and model.class_names == NAMES


def test_a_fold_for_cross_validation_resumes(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole", fold="2/3")
    train_p1.main(options(data, tmp_path / "parts", "--time-limit", "1e-9", fold="2/3"))
    train_p1.main(options(data, tmp_path / "parts", "--resume", fold="2/3"))
    assert story(tmp_path / "parts") == story(tmp_path / "whole")
    assert "fold" in mistake(options(data, tmp_path / "parts", "--resume", fold="1/3"))


def test_a_recipe(data: Path, tmp_path: Path) -> None:
    model = train(data, tmp_path / "run", recipe="pets-lukemelas", model=None, epochs=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["optimizer"], config["schedule"], config["period"], config["lr"]) == ("sgd", "step", 10, 0.01)
    assert model.config.width == 16


def test_events_for_tensorboard_where_it_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "run") and purge_step == 6
            self.flush = lambda: None

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

    monkeypatch.setattr(train_p1.importlib.util, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    train(data, tmp_path / "run")
    rows = [row for row in read_history(tmp_path / "run") if "epoch" in row]
    assert [one for one in written if one[0] == "top1"] == [("top1", row["top1"], row["step"]) for row in rows]
    assert {name for name, *_ in written} == {*rows[0]} - {"epoch", "step"}


# -- stopping and going on -----------------------------------------------------------------------------------

HARD = {"epochs": 3, "optimizer": "sgd", "sam": 0.05, "accumulate": 2, "ema": 0.9, "lr": 0.05, "warmup": 5,
        "mixup": 0.4, "crop_scale": 0.4, "flip": 0.5, "drop_path": 0.2, "smoothing": 0.1, "auto": "randaugment"}


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `HARD` that nothing stopped."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    train(data, out, **HARD)
    return out


def same(one: Path, two: Path) -> None:
    assert story(one) == story(two)
    for name in ("best", "last"):
        first, second = (minivl.load(run / f"{name}.safetensors", verify=True).state_dict() for run in (one, two))
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize("stop", [1, 5, 6, 11])
def test_interrupted_at_a_step_and_resumed(data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           stop: int) -> None:
    """Ctrl-C between the two gradients of SAM."""
    calls = iter(range(10 ** 6))
    perturb = step_module.Sam.perturb

    def stopped(self: Any, parameters: Any) -> None:
        perturb(self, parameters)
        if next(calls) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(step_module.Sam, "perturb", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", **HARD)
    assert len([row for row in story(tmp_path / "run") if "loss" in row]) == stop
    train(data, tmp_path / "run", "--resume", **HARD)
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_resumed(data: Path, whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    child = subprocess.Popen([sys.executable, str(ROOT / "train_p1.py"), *options(data, out, **HARD)],
                             env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    history = out / "history.jsonl"
    while child.poll() is None and not (history.exists() and history.read_bytes().count(b"\n") >= 9):
        time.sleep(0.002)
    child.send_signal(number)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == (130 if number == signal.SIGTERM else -9), errors
    assert errors.endswith("stopped\n") or number == signal.SIGKILL
    train(data, out, "--resume", **HARD)
    same(whole, out)


def test_out_of_time_and_resumed(data: Path, whole: Path, tmp_path: Path,
                                 caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train_p1.main(options(data, tmp_path / "run", time_limit=1e-6, **HARD))
    assert "time limit of 1e-06 s reached at step 1 of 18; --resume goes on" in caplog.text
    assert len(story(tmp_path / "run")) == 1
    train(data, tmp_path / "run", "--resume", **HARD)
    same(whole, tmp_path / "run")


# -- bad input -----------------------------------------------------------------------------------------------

def test_pictures_that_do_not_open_are_left_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed before the first step."""
    folder = tmp_path / "data"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            picture(NAMES.index(name), number).save(folder / name / f"{number}.png")
    bad = folder / "berry" / "bad.png"
    bad.write_bytes((folder / "berry" / "0.png").read_bytes()[:200])
    Image.new("RGB", (4000, 1)).save(folder / "apple" / "thin.png")
    (folder / "apple" / "notes.txt").write_text("no picture")
    seen: list[str] = []
    gradients = step_module.Stepper.gradients
    monkeypatch.setattr(step_module.Stepper, "gradients", lambda *words: (
        seen.append((tmp_path / "run" / "skipped.txt").read_text()), gradients(*words))[1])
    train(data, tmp_path / "run", "--json", data=folder, val_fraction=0.25, epochs=1, fit="crop")
    lines = seen[0].splitlines()
    assert any(line.startswith(f"{bad}: ") for line in lines) and any("notes.txt: no picture" in line for line in lines)
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert out[0] == {"skipped": len(lines)}


def mistake(argv: list[str]) -> str:
    """The one line a mistake ends with."""
    with pytest.raises(InputError) as caught:
        train_p1.main(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lose(folder: Path) -> None:
    for name in NAMES[:2]:
        (folder / name).mkdir(parents=True)
    for number in range(4):
        picture(0, number).save(folder / NAMES[0] / f"{number}.png")


def broken(folder: Path) -> None:
    lose(folder)
    for number in range(2):
        (folder / NAMES[1] / f"{number}.png").write_text("no picture")


@pytest.mark.parametrize("make, changes, told", [
    (None, {"data": "nowhere"}, "nowhere: no such folder"),
    (lambda folder: folder.mkdir(), {}, "holds no pictures"),
    (lose, {}, "1 of 2 classes have no picture: 'berry'"),
    (broken, {}, "no picture of 'berry' can be used"),
    (None, {"val_fraction": 0.2}, "val_fraction=0.2 would split another off"),
    (None, {"data": None, "val_fraction": 0.2}, "--val-fraction splits the pictures of --data"),
    (None, {"fold": "1/3", "val_fraction": 0.2}, "--fold splits the training pictures of --data"),
    (None, {"data": None, "fold": "1/3"}, "--fold splits"), (None, {"fold": "4/3"}, "fold 4/3: give k/n"),
    (None, {"init": "nowhere.safetensors"}, "nowhere.safetensors"),
    (None, {"init": "none", "model": "vit_huge"}, "unknown model 'vit_huge'"),
    (None, {"image_size": 20}, "is not a whole number of patches (8, 8): 16 or 24 would be"),
    (None, {"image_size": 0}, "--image-size 0: give 1 or more"),
    (None, {"image_size": 160000}, "--image-size 160000: give 1 or more, at most 4096 pixels a side"),
    (None, {"lr": -1}, "lr=-1"), (None, {"lr": "nan"}, "lr=nan"),
    (None, {"sam": -0.1}, "sam=-0.1"), (None, {"mixup": -1}, "mixup=-1"), (None, {"smoothing": 1}, "smoothing=1"),
    (None, {"flip": 2}, "flip=2"), (None, {"crop_scale": 0}, "crop_scale"), (None, {"drop_path": 1}, "drop_path=1"),
    (None, {"accumulate": 0}, "--accumulate 0"), (None, {"layer_decay": 2}, "layer_decay=2"),
    (None, {"recipe": "pets"}, "--recipe pets: unknown"), (None, {"momentum": 0.5}, "--momentum changes nothing with"),
    (None, {"period": 2}, "--period changes nothing with --schedule cosine"), (None, {"ema": 1}, "ema=1.0"),
    (None, {"magnitude": 5, "auto": "autoaugment"}, "--magnitude changes nothing with --auto autoaugment"),
    (None, {"val_scenes": 5}, "--val-scenes does not go with --data"),
    (None, {"optimizer": "sgd", "momentum": 1}, "momentum=1.0: nothing of the past"),
])
def test_mistakes(data: Path, tmp_path: Path, make: Callable[[Path], None] | None, changes: dict[str, Any],
                  told: str) -> None:
    if make is not None:
        make(tmp_path / "data")
        changes = {"data": tmp_path / "data", "val_fraction": 0.5}
    assert told in mistake(options(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more, told", [
    (["--sam-adaptive"], "sam_adaptive and sam_local change SAM, which is off"),
    (["--shard"], "there is one process"), (["--shard", "--sam", "0.1", "--sam-local"], "leave one of the two out"),
    (["--shard", "--freeze", "encoder"], "leave one of the two out"), (["--resume"], "nothing to resume")])
def test_options_that_do_not_go_together(data: Path, tmp_path: Path, more: list[str], told: str) -> None:
    assert told in mistake(options(data, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_folders_of_runs(data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file, a run needs a folder" in mistake(options(data, tmp_path / "file"))
    with pytest.raises(SystemExit) as stopped:
        train_p1.main(options(data, Path("x"), "--out", ""))
    assert stopped.value.code == 2 and "argument --out: name a folder" in capsys.readouterr().err
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert "already holds a run" in mistake(options(data, whole, **HARD))
    minivl.save(vit(3), tmp_path / "other.safetensors")
    for changes, told in (({"lr": 0.5}, "lr was 0.05, is 0.5"), ({"init": tmp_path / "other.safetensors"}, "init was"),
                          ({"data": data / "course"}, "data_hash was"),
                          ({"data": data / "folders" / "train", "val_fraction": 0.5}, "val_fraction was None, is 0.5")):
        assert told in mistake(options(data, whole, "--resume", **{**HARD, **changes}))
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == before


def test_other_settings_are_refused_before_pictures_are_read(data: Path, whole: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_p1, "build_model", lambda *args: pytest.fail("weights came first"))
    assert "lr was 0.05, is 0.5" in mistake(options(data, whole, "--resume", **{**HARD, "lr": 0.5}))


def test_weights_of_something_else(data: Path, whole: Path, tmp_path: Path) -> None:
    assert "checkpoint.safetensors" in mistake(options(data, tmp_path / "run", init=whole / "checkpoint.safetensors"))
    minivl.save(tiny_run.captioner(), tmp_path / "captioner.safetensors")
    told = mistake(options(data, tmp_path / "run", init=tmp_path / "captioner.safetensors"))
    assert told.startswith(str(tmp_path / "captioner.safetensors")) and "is a captioner" in told
    start = vit(3)
    start.state_dict()["pos_embed"][0, 1, 2] = float("inf")
    minivl.save(start, tmp_path / "inf.safetensors")
    told = mistake(options(data, tmp_path / "run", init=tmp_path / "inf.safetensors"))
    assert told.startswith(f"{tmp_path / 'inf.safetensors'}: 1 tensor with nan or infinite values")
    assert not (tmp_path / "run").exists()


def test_a_rate_that_diverges(data: Path, tmp_path: Path) -> None:
    """Weights and checkpoint from before stay loadable, and the run can be looked at."""
    told = mistake(options(data, tmp_path / "run", lr=1e30, optimizer="sgd", clip=0, warmup=9, epochs=3))
    assert "not finite at step" in told and "try a lower learning rate" in told
    assert "no checkpoint was written yet" in told and len(story(tmp_path / "run")) < 4


def test_a_loss_that_is_not_a_number(data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and checkpoint of the epoch before stay; and training goes on from there."""
    calls = iter(range(1000))
    loss = ClassifyTask.loss
    with monkeypatch.context() as patch:
        patch.setattr(ClassifyTask, "loss", lambda *words: loss(*words) * (float("nan") if next(calls) > 30 else 1.0))
        told = mistake(options(data, tmp_path / "run", **HARD))
    assert "not finite at step 8 (" in told and str(tmp_path / "run" / "checkpoint.safetensors") in told
    assert best(tmp_path / "run").class_names == NAMES
    train(data, tmp_path / "run", "--resume", **HARD)
    same(whole, tmp_path / "run")


def test_the_program_ends_with_one_line_and_code_2(data: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "train_p1.py"),
                           *options(data, tmp_path / "run", data=tmp_path / "nowhere")],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "") and list(tmp_path.iterdir()) == []
    assert done.stderr == f"error: {tmp_path / 'nowhere'}: no such folder\n"
