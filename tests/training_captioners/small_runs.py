"""The command lines of small captioners and pairs, and what their runs leave; fixtures are in conftest.py."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run

import minivl
import train_p2
from minivl.errors import InputError
from minivl.models.captioner import Captioner
from minivl.models.clip import CLIP
from minivl.train.contrasting import KS
from minivl.train.run import read_history

ROOT = Path(__file__).resolve().parents[2]
LEFT = {"best.safetensors", "last.safetensors", "checkpoint.safetensors", "config.json", "history.jsonl",
        "history.png"}


def coco(file: Path, names: list[str], seed: int) -> None:
    """A COCO-JSON of random captions, 2 to 3 of each photo."""
    draw = random.Random(seed)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"id": 10 * number + place, "image_id": number,
                    "caption": " ".join(draw.choices(tiny_run.WORDS, k=5))}
                   for number in range(len(names)) for place in range(draw.randint(2, 3))]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))


def options(data: Path, out: Path, /, **changes: Any) -> list[str]:
    """The command line of a small run; a change of None leaves an option out."""
    told = {"images": data / "photos", "captions": data / "train.json", "val-captions": data / "val.json",
            "encoder": data / "vit.safetensors", "freeze-encoder": True, "width": 16, "depth": 1, "heads": 2,
            "min-count": 1, "max-len": 8, "epochs": 2, "batch-size": 6, "refs": 2, "lr": 3e-3, "warmup": 2,
            "ema": 0.9, "beams": 2, "precision": "fp32", "device": "cpu", "out": out,
            "features": out.parent / "features",
            **{key.replace("_", "-"): value for key, value in changes.items()}}
    if "features" not in changes and not (told["freeze-encoder"] and told["images"]):
        del told["features"]  # it would change nothing
    argv = []
    for key, value in told.items():
        if value is not None and value is not False:
            argv += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return argv


def train(data: Path, out: Path, /, **changes: Any) -> None:
    train_p2.main(options(data, out, **changes))


@contextlib.contextmanager
def stops_at(task: Any, number: int) -> Iterator[list[None]]:
    """Within it the loss of this step raises what Ctrl-C raises; gives a list that grows by one with every loss."""
    loss, losses = task.loss, []

    def stopping(*args: Any) -> Any:
        losses.append(None)
        if len(losses) == number:
            raise KeyboardInterrupt
        return loss(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(task, "loss", stopping)
        yield losses


def story(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_history(folder)]


def weights(folder: Path, name: str = "best") -> Captioner:
    model = minivl.load(folder / f"{name}.safetensors", verify=True)
    assert isinstance(model, Captioner)
    return model


SCENES = {"images": None, "captions": None, "val_captions": None, "freeze_encoder": None, "scenes": 12,
          "val_scenes": 4, "epochs": 14, "lr": 0.02, "dropout": 0, "smoothing": 0, "max_len": 12, "batch_size": 12,
          "beams": 1}


def scenes_run(out: Path) -> None:
    assert {file.name for file in out.iterdir()} == LEFT
    model = weights(out)
    look = model.notes["look"]
    assert look["layer"] == 0 and look["heads"] in ("mean", [0], [1]) and look["scenes"] == 12
    assert model.notes["data"] == "scenes"
    assert json.loads((out / "config.json").read_text())["look"] == look
    assert [row["step"] for row in read_history(out) if "loss" in row] == list(range(1, 29))


PAIR = {"objective": "contrastive", "refs": None, "beams": None, "embed_dim": 12}
RECALLS = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in KS]


def pair_of(folder: Path, name: str = "best") -> CLIP:
    model = minivl.load(folder / f"{name}.safetensors", verify=True)
    assert isinstance(model, CLIP)
    return model


def step_losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_history(folder) if "loss" in row]


LEARNS = {"freeze_encoder": None, "dropout": 0, "drop_words": 0.2, "drop_tokens": 0.2}
GIVEN = {"encoder": None, "width": None, "depth": None, "heads": None, "min_count": None, "max_len": None}
STAYS = {"lr": 0, "ema": 0, "weight_decay": 0, "epochs": 1}  # weights stay as they are


def begun(starts: dict[str, Path], objective: str, **changes: Any) -> dict[str, Any]:
    """Options of a run that starts from one of them."""
    own: dict[str, Any] = {**PAIR, "embed_dim": None} if objective == "contrastive" else {}
    return {**GIVEN, **own, "init": starts[objective], "freeze_encoder": None, **changes}


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "train_p2.py"), *argv], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, cwd=ROOT)


def mistake(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user's mistake gets; exit code 2 either way."""
    capsys.readouterr()
    try:
        train_p2.main(argv)
    except InputError as error:
        line = str(error)
        assert "\n" not in line
    except SystemExit as stopped:
        assert stopped.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
    else:
        pytest.fail("nothing was wrong")
    assert capsys.readouterr().out == ""  # nothing was begun
    return line


NEW = dict.fromkeys(("encoder", "width", "depth", "heads", "min_count", "refs"))
SCST: dict[str, Any] = {**NEW, "objective": "scst", "samples": 3, "batch_size": 3, "epochs": 2, "lr": 1e-2}


def scst(frozen: Path, **changes: Any) -> dict[str, Any]:
    return {**SCST, "init": frozen / "best.safetensors", **changes}
