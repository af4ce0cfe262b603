"""Two processes that share every batch train what one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import two_processes
from torch import Tensor

import train_p1
from minivl.errors import InputError
from minivl.files import read_tensors, write_tensors
from minivl.loading import load, save
from minivl.models.vit import ViT
from minivl.train.checkpoint import read_checkpoint
from minivl.train.distributed import ALONE, Processes, processes
from minivl.train.loop import Plan, fit
from minivl.train.run import read_history

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("shared", "shard")


def torchrun(*argv: str | Path, count: int = 2) -> subprocess.CompletedProcess[str]:
    """So many processes on this machine."""
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                           *map(str, (count, *argv))], capture_output=True, text=True, cwd=ROOT, timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                               "PYTHONWARNINGS": "error::FutureWarning,error::DeprecationWarning:minivl"})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(ROOT / "tests" / "two_processes.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings in this process; accumulation is what processes do with more of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    for case in two_processes.CASES:
        two_processes.train(folder / case, case)
    torch.set_num_threads(threads)
    return folder


def losses(folder: Path) -> Tensor:
    """Of every step."""
    return torch.tensor([row["loss"] for row in read_history(folder) if "loss" in row], dtype=torch.float64)


def logits(folder: Path) -> Tensor:
    """What the last weights of a run, which are averages, say of random pictures."""
    model = load(folder / "last.safetensors", verify=True)
    assert isinstance(model, ViT)
    with torch.no_grad():
        return model(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_train_what_one_does(two: Path, one: Path, kind: str, case: str) -> None:
    found, wanted = two / f"{kind}-{case}", one / case
    assert losses(found).shape == (21,) and (losses(wanted)[0] - losses(wanted)[-1]).abs() > 0.1
    print((losses(found) - losses(wanted)).abs().max(), (logits(found) - logits(wanted)).abs().max())
    assert (losses(found) - losses(wanted)).abs().max() < 1e-6
    assert (logits(found) - logits(wanted)).abs().max() < 1e-5
    rows = [[row for row in read_history(folder) if "epoch" in row] for folder in (found, wanted)]
    assert [row["top1"] for row in rows[0]] == [row["top1"] for row in rows[1]]
    kept, known = (read_checkpoint(folder / "checkpoint.safetensors")[0] for folder in (found, wanted))
    assert {name: tensor.shape for name, tensor in kept.items()} == {name: one.shape for name, one in known.items()}
    if case == "sam":  # AdamW divides gradients that are nothing but rounding (of the keys' biases) by their size
        assert max((kept[name] - tensor).abs().max() for name, tensor in known.items()) < 1e-6


@pytest.mark.parametrize("how", ["resumed", "interrupted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_stops_and_goes_on(two: Path, kind: str, how: str) -> None:
    """By a time limit, or by SIGTERM to one of them; at a step that is the last of an epoch too."""
    assert torch.equal(losses(two / f"{kind}-{how}"), losses(two / f"{kind}-sam"))
    pair = [read_checkpoint(two / f"{kind}-{name}" / "checkpoint.safetensors")[0] for name in (how, "sam")]
    assert pair[0].keys() == pair[1].keys() and all(torch.equal(pair[1][name], pair[0][name]) for name in pair[0])


# -- parts ---------------------------------------------------------------------------------------------------

def test_each_process_writes_its_parts(two: Path) -> None:
    run = two / "shard-adamw"
    folder, = run.glob("checkpoint-parts-*")
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["1-of-2.safetensors", "2-of-2.safetensors"]
    beside, header = read_tensors(run / "checkpoint.safetensors")
    assert json.loads(header["training"])["parts"] == folder.name
    assert beside and {name.split(".")[1] for name in beside} == {"step"}
    whole, _ = read_checkpoint(run / "checkpoint.safetensors")
    held = [sum(tensor.numel() for tensor in read_tensors(file)[0].values()) for file in files]
    wanted = sum(tensor.numel() for name, tensor in whole.items() if name not in beside)
    # [class] and register tokens have one row
    assert sum(held) == wanted and max(held) < 0.6 * wanted
    assert not list((two / "shared-adamw").glob("checkpoint-parts-*"))


def damaged(two: Path, folder: Path, change: Callable[[Path], object]) -> str:
    """What is said of a run whose parts were changed."""
    shutil.copytree(two / "shard-sam", folder)
    parts, = folder.glob("checkpoint-parts-*")
    change(parts)
    with pytest.raises(InputError) as raised:
        two_processes.train(folder, "sam", resume=True)
    assert "\n" not in str(raised.value) and str(parts) in str(raised.value)
    return str(raised.value)


def cut(parts: Path) -> None:
    file = parts / "2-of-2.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rename(parts: Path) -> None:
    """The same part twice."""
    shutil.copy(parts / "1-of-2.safetensors", parts / "2-of-2.safetensors")


def headless(parts: Path) -> None:
    file = parts / "1-of-2.safetensors"
    write_tensors(file, read_tensors(file)[0], {"parts": "[1"})


@pytest.mark.parametrize("change, told", [
    (cut, "2-of-2.safetensors: is not a whole safetensors file"), (headless, "1-of-2.safetensors: is damaged"),
    (lambda parts: (parts / "1-of-2.safetensors").unlink(), "is damaged: parts of model."),
    (rename, "is in 1-of-2.safetensors too"), (shutil.rmtree, "is missing: this folder belongs to the checkpoint")])
def test_damaged_parts(two: Path, tmp_path: Path, change: Callable[[Path], object], told: str) -> None:
    assert told in damaged(two, tmp_path / "run", change)


def test_sam_by_the_share_of_each_process(two: Path) -> None:
    """The same run written out: each half of a batch perturbs by its own gradient."""
    plan, options = two_processes.CASES["sam"]
    model = two_processes.vit()
    halves = [two_processes.task(model, Processes(rank, 2), **options) for rank in range(2)]
    parameters = [parameter for parameter in model.parameters()]
    found = losses(two / "local")
    assert (found - losses(two / "shared-sam")).abs().max() > 1e-4  # else it would say nothing
    moments = [torch.zeros_like(parameter) for parameter in parameters]
    matrices = {id(one.weight) for one in model.modules() if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d))}
    for step, batches in enumerate(zip(*(half.batches(0, 0) for half in halves))):
        total, gradients = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
        for half, batch in zip(halves, batches):
            share = batch.counted / batch.whole
            loss = half.loss(model, batch) * share
            total += loss.item()
            first = torch.autograd.grad(loss, parameters)
            norm = torch.cat([one.flatten() for one in first]).norm()
            held = [parameter.detach().clone() for parameter in parameters]
            with torch.no_grad():
                for parameter, one in zip(parameters, first):
                    parameter.add_(one, alpha=plan.sam / norm.item())
            second = torch.autograd.grad(half.loss(model, batch) * share, parameters)
            with torch.no_grad():
                for parameter, one, gradient, kept in zip(parameters, second, gradients, held):
                    gradient.add_(one)
                    parameter.copy_(kept)
        assert abs(found[step].item() - total) < 1e-5, step
        norm = torch.cat([one.flatten() for one in gradients]).norm()
        rate = plan.lr * min(1.0, (step + 1) / plan.warmup)
        with torch.no_grad():
            for parameter, gradient, moment in zip(parameters, gradients, moments):
                decay = plan.weight_decay if id(parameter) in matrices else 0.0
                gradient.mul_(min(1.0, plan.clip / norm.item())).add_(parameter, alpha=decay)
                moment.mul_(plan.momentum).add_(gradient)
                parameter.sub_(rate * moment)


@pytest.mark.parametrize("shard", [False, True])
def test_the_program(tmp_path: Path, shard: bool) -> None:
    """torchrun train_p1.py: one of the two speaks and writes; of a mistake too."""
    for number, photo in enumerate(two_processes.photos(12)):
        folder = tmp_path / "data" / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{number}.png")
    (tmp_path / "data" / "class 0" / "broken.png").write_text("gone")
    save(two_processes.vit(), tmp_path / "vit.safetensors")
    argv = ["--data", tmp_path / "data", "--val-fraction", "0.3", "--init", tmp_path / "vit.safetensors", "--epochs",
            "2", "--batch-size", "4", "--warmup", "1", "--lr", "0.01", "--flip", "0.5", "--precision", "fp32",
            "--device", "cpu", "--json", "--out"]
    done = torchrun(ROOT / "train_p1.py", *argv, tmp_path / "two", *["--shard"][:shard])
    assert done.returncode == 0, done.stderr
    train_p1.main([*map(str, argv), str(tmp_path / "one")])
    assert (losses(tmp_path / "two") - losses(tmp_path / "one")).abs().max() < 1e-6
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("epoch") for line in lines if "top1" in line] == [1, 2, lines[-1]["epoch"]]
    assert sum("skipped" in line for line in lines) == 1 and (tmp_path / "two" / "skipped.txt").exists()
    if shard:
        done = torchrun(ROOT / "train_p1.py", *argv, tmp_path / "two")
        assert done.returncode != 0 and "already holds a run: give --resume" in done.stderr
        assert "ends with the first one, which says why" in done.stderr and "Error(" not in done.stdout


def test_what_cannot_be_shared_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is one process; start several with torchrun"):
        with processes(torch.device("cpu"), shard=True):
            pass
    model = two_processes.vit()
    plan = Plan(epochs=1, lr=0.1, sam=0.05, sam_local=True)
    with pytest.raises(InputError, match="sam_local: processes that keep parts"):
        next(fit(model, two_processes.task(model), plan, out=tmp_path / "run", settings={},
                 processes=Processes(0, 1, True)))
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_the_first_process_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken() -> int:
        raise InputError("no such folder")

    assert ALONE.first_then_all(lambda: 3, lambda: 4) == 3
    with pytest.raises(InputError, match="^no such folder$"):
        ALONE.first_then_all(mistaken, lambda: 4)
    second = Processes(1, 2)
    for failed, value in ((0.0, 4), (1.0, None)):
        monkeypatch.setattr(second, "sum", lambda number: number + failed)
        if value:
            assert second.first_then_all(mistaken, lambda: 4) == value
        else:
            with pytest.raises(InputError, match="process 1 ends with the first one"):
                second.first_then_all(mistaken, lambda: 4)
