"""Two processes that share every batch of captions train what one does, and go on with what one began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import two_captioners
from test_distributed import KINDS, ROOT, losses, torchrun
from torch import Tensor

import train_p2
from minivl.errors import InputError
from minivl.images import Preprocessing
from minivl.loading import load, save
from minivl.models.vit import ViT, ViTConfig
from minivl.train.checkpoint import read_checkpoint
from minivl.train.distributed import Processes
from minivl.train.loop import fit
from minivl.train.run import read_history


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process began is there for two to go on with."""
    folder = tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in KINDS:
        two_captioners.train(folder / f"one-then-{kind}", "sgd", stop=10)
    torch.set_num_threads(threads)
    done = torchrun(ROOT / "tests" / "two_captioners.py", folder)
    assert done.returncode == 0, done.stderr
    done = torchrun(ROOT / "tests" / "two_captioners.py", folder, count=3)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    for case in two_captioners.CASES:
        two_captioners.train(folder / case, case)
    torch.set_num_threads(threads)
    return folder


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    return dict(load(folder / f"{name}.safetensors", verify=True).state_dict())


def same(found: Path, wanted: Path, steps: int) -> None:
    """Losses, scores, averaged weights and checkpoint tensors."""
    assert losses(found).shape == losses(wanted).shape and len(losses(found)) >= steps
    assert (losses(wanted)[0] - losses(wanted)[-1]).abs() > 0.01
    assert (losses(found) - losses(wanted)).abs().max() < 1e-6
    rows: Any = [[row for row in read_history(folder) if "epoch" in row] for folder in (found, wanted)]
    for mine, theirs in zip(*rows):
        assert {name: mine[name] for name in mine if name != "seconds"} == pytest.approx(
            {name: theirs[name] for name in theirs if name != "seconds"}, abs=1e-5)
    kept, known = (read_checkpoint(folder / "checkpoint.safetensors")[0] for folder in (found, wanted))
    assert {name: tensor.shape for name, tensor in kept.items()} == {name: one.shape for name, one in known.items()}
    if "adamw" not in found.name:  # it divides gradients that are nothing but rounding by their size
        assert max((kept[name] - tensor).abs().max() for name, tensor in known.items()) < 1e-6
        state = weights(wanted)
        assert max((weights(found)[name] - tensor).abs().max() for name, tensor in state.items()) < 1e-6


@pytest.mark.parametrize("kind, case", [(kind, case) for kind in KINDS for case in two_captioners.CASES
                                        if kind == "shared" or case in two_captioners.SHARDED])
def test_two_train_what_one_does(two: Path, one: Path, kind: str, case: str) -> None:
    same(two / f"{kind}-{case}", one / case, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_processes_goes_on(two: Path, one: Path, kind: str) -> None:
    """Two go on from where one stopped, and one and three from where two stopped."""
    same(two / f"one-then-{kind}", one / "sgd", 20)
    assert len(losses(two / f"{kind}-stopped")) == 9
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    two_captioners.train(two / f"{kind}-stopped", "sgd", resume=True)
    torch.set_num_threads(threads)
    same(two / f"{kind}-stopped", one / "sgd", 20)
    same(two / f"{kind}-then-three", one / "sgd", 20)


def test_a_pair_has_no_parts(tmp_path: Path) -> None:
    """The factor on the cosines is one number."""
    model, task = two_captioners.made("pair")
    with pytest.raises(InputError, match="logit_scale is one number, of which processes cannot keep parts"):
        next(fit(model, task, two_captioners.PLAN, out=tmp_path / "run", settings={}, wrap=task.wrap,
                 processes=Processes(0, 2, True)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [["--shard"], ["--objective", "contrastive"]])
def test_the_program(tmp_path: Path, changes: list[str]) -> None:
    """torchrun train_p2.py: one of the two speaks and writes; of a mistake too."""
    argv = ["--scenes", "7", "--val-scenes", "3", "--width", "16", "--depth", "1", "--heads", "2", "--min-count", "1",
            "--batch-size", "6", "--epochs", "2", "--warmup", "1", "--lr", "0.05", "--dropout", "0", "--precision",
            "fp32", "--device", "cpu", "--json", "--encoder", str(tmp_path / "vit.safetensors"), "--optimizer", "sgd"]
    torch.manual_seed(0)
    save(ViT(ViTConfig((32, 32), (8, 8), 24, 2, 2, 48, num_classes=0),
             preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)), tmp_path / "vit.safetensors")
    done = torchrun(ROOT / "train_p2.py", *argv, *changes, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    train_p2.main([*argv, *(one for one in changes if one != "--shard"), "--out", str(tmp_path / "one")])
    assert (losses(tmp_path / "two") - losses(tmp_path / "one")).abs().max() < 1e-6
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2] and sum("best" in line for line in lines) == 1
    if changes == ["--shard"]:
        done = torchrun(ROOT / "train_p2.py", *argv, *changes, "--out", tmp_path / "two")
        assert done.returncode != 0 and "already holds a run: give --resume" in done.stderr
        assert "ends with the first one, which says why" in done.stderr and "Error(" not in done.stdout
