"""The training loop: what it computes, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from torch import Tensor, nn

from minivl.errors import InputError
from minivl.files import read_tensors, write_tensors
from minivl.loading import load
from minivl.train import checkpoint
from minivl.train import run as run_files
from minivl.train import step as step_module
from minivl.train.loop import Plan, fit
from minivl.train.optim import Ema, decay_groups, schedule
from minivl.train.run import Run, read_history

ROOT = Path(__file__).resolve().parents[1]
QUICK = replace(tiny_run.PLAN, save_every=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def story(folder: Path) -> list[dict[str, Any]]:
    """The history without its clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_history(folder)]


def losses_of(folder: Path) -> list[float]:
    """The loss of every step."""
    return [row["loss"] for row in read_history(folder) if "loss" in row]


def same_weights(one: Path, two: Path) -> None:
    """Both weight files load, verified, and hold equal tensors."""
    first, second = load(one, verify=True).state_dict(), load(two, verify=True).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def same_run(one: Path, two: Path) -> None:
    """Two finished runs have the same history and the same weights."""
    assert story(one) == story(two)
    for name in ("best.safetensors", "last.safetensors"):
        same_weights(one / name, two / name)
    (first, header), (second, other) = (read_tensors(folder / run_files.CHECKPOINT) for folder in (one, two))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    first_state, second_state = json.loads(header["training"]), json.loads(other["training"])
    assert first_state.pop("seconds") > 0 and second_state.pop("seconds") > 0
    assert first_state == second_state
    assert not list(two.glob(".*"))


def step_of(folder: Path) -> int:
    """Steps done, by the checkpoint."""
    return json.loads(read_tensors(folder / run_files.CHECKPOINT)[1]["training"])["step"]


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """An uninterrupted run of 3 epochs of 6 steps."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param) / "run"
    plan = replace(QUICK, precision=request.param)
    tiny_run.train(folder, plan=plan)
    return folder, plan


# -- what a run leaves ---------------------------------------------------------------------------------------

def test_history_has_every_step_once(whole: tuple[Path, Plan]) -> None:
    rows = story(whole[0])
    steps = [row for row in rows if "epoch" not in row]
    assert [row["step"] for row in steps] == list(range(1, 19))
    assert [row["lr"] for row in steps] == [3e-3 * schedule("cosine", step, 18, 4) for step in range(18)]
    epochs = [row for row in rows if "epoch" in row]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 6), (2, 12), (3, 18)]
    assert [row["step"] for row in rows] == [*range(1, 7), 6, *range(7, 13), 12, *range(13, 19), 18]
    for row in epochs:
        losses = [step["loss"] for step in steps if row["step"] - 6 < step["step"] <= row["step"]]
        assert row["train_loss"] == pytest.approx(sum(losses) / 6, rel=1e-12)
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]


def test_files_of_a_run(whole: tuple[Path, Plan]) -> None:
    folder, plan = whole
    assert sorted(file.name for file in folder.iterdir()) == [
        "best.safetensors", "checkpoint.safetensors", "config.json", "history.jsonl", "last.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["kind"], config["precision"], config["steps_per_epoch"]) == ("tiny", plan.precision, 6)
    last, best = (load(folder / f"{name}.safetensors", verify=True) for name in ("last", "best"))
    epochs = [row for row in read_history(folder) if "epoch" in row]
    assert last.notes["scores"]["cider_d"] == epochs[-1]["cider_d"]
    assert best.notes["scores"]["cider_d"] == max(row["cider_d"] for row in epochs)
    assert "cider-d" in last.notes["scores"]["signature"]


def test_bf16_is_near_fp32_and_not_equal(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        tiny_run.train(tmp_path / precision, plan=replace(QUICK, epochs=1, precision=precision))
        losses[precision] = torch.tensor(losses_of(tmp_path / precision))
    assert not torch.equal(losses["fp32"], losses["bf16"])
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.02, atol=0)


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        tiny_run.train(tmp_path / name, plan=replace(QUICK, epochs=1, seed=seed))
    same_run(tmp_path / "a", tmp_path / "b")
    assert story(tmp_path / "a") != story(tmp_path / "c")


# -- stopped and resumed -------------------------------------------------------------------------------------

def stop_at(number: int) -> Callable[[int], None]:
    def before(step: int) -> None:
        if step == number:
            raise KeyboardInterrupt
    return before


def test_interrupted_again_and_again(whole: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = whole
    stops = 0
    for number in (0, 0, 1, 4, 1, 2, 3, 6):  # before the first step, inside epochs, at their first steps
        with pytest.raises(KeyboardInterrupt):
            tiny_run.train(tmp_path / "run", resume=stops > 0, plan=plan, before=stop_at(number))
        stops += 1
        if number:
            assert step_of(tmp_path / "run") == len(losses_of(tmp_path / "run"))
    tiny_run.train(tmp_path / "run", resume=True, plan=plan)
    same_run(folder, tmp_path / "run")


def test_interrupt_saves_the_last_whole_step(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_run.train(tmp_path, plan=QUICK, before=stop_at(9))
    assert step_of(tmp_path) == 9


def test_interrupted_in_the_backward_pass(whole: tuple[Path, Plan], tmp_path: Path) -> None:
    def stop(gradient: Tensor) -> Tensor:
        raise KeyboardInterrupt

    def hooked(loss: Tensor) -> Tensor:
        loss.register_hook(stop)
        return loss

    folder, plan = whole
    with pytest.raises(KeyboardInterrupt):
        tiny_run.train(tmp_path, plan=plan, before=lambda step: hooked if step == 8 else None)
    assert step_of(tmp_path) == 8
    tiny_run.train(tmp_path, resume=True, plan=plan)
    same_run(folder, tmp_path)


@pytest.mark.parametrize("place", ["backward", "next batch", "after a checkpoint"])
def test_running_statistics_are_those_of_whole_steps(tmp_path: Path, place: str) -> None:
    """An interrupt after a forward pass must not save what that pass did to batch norms."""
    plan = tiny_run.PLAN if place == "after a checkpoint" else QUICK
    tiny_run.train(tmp_path / "whole", plan=plan, stem=(6, 6))

    def stop(gradient: Tensor) -> Tensor:
        raise KeyboardInterrupt

    def hooked(loss: Tensor) -> Tensor:
        loss.register_hook(stop)
        return loss

    def before(step: int) -> Callable[[Tensor], Tensor] | None:
        if step == 8 and place == "next batch":
            raise KeyboardInterrupt
        return hooked if step == 8 else None

    with pytest.raises(KeyboardInterrupt):
        tiny_run.train(tmp_path / "run", plan=plan, stem=(6, 6), before=before)
    stored, header = read_tensors(tmp_path / "run" / run_files.CHECKPOINT)
    assert json.loads(header["training"])["step"] == 8
    assert stored["buffer.encoder.patch_embed.stem.1.num_batches_tracked"] == 8
    tiny_run.train(tmp_path / "run", plan=plan, stem=(6, 6), resume=True)
    same_run(tmp_path / "whole", tmp_path / "run")


def test_scored_statistics_are_averages(tmp_path: Path) -> None:
    tiny_run.train(tmp_path, plan=QUICK, stem=(6, 6))
    stored, _ = read_tensors(tmp_path / run_files.CHECKPOINT)
    name = "encoder.patch_embed.stem.1.running_mean"
    last = load(tmp_path / "last.safetensors").state_dict()[name]
    assert torch.equal(last, stored[f"ema.{name}"]) and not torch.equal(last, stored[f"buffer.{name}"])


def test_a_frozen_part_sleeps(tmp_path: Path) -> None:
    model = tiny_run.captioner(dropout=0.5, stem=(6, 6))
    model.encoder.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    modes: list[set[bool]] = []

    def look(step: int) -> None:
        modes.append({module.training for module in model.encoder.modules()})
        assert model.training and all(module.training for module in model.decoder.modules())

    list(fit(model, tiny_run.Watched(tiny_run.task(model), look), replace(QUICK, epochs=2), out=tmp_path, settings={}))
    assert modes == [{False}] * 12
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_frozen_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, hashed = tiny_run.captioner(), []
    model.encoder.requires_grad_(False)
    real = checkpoint.tensor_bytes
    monkeypatch.setattr(checkpoint, "tensor_bytes", lambda tensor: hashed.append(1) or real(tensor))
    count = len(list(model.encoder.parameters()))
    list(fit(model, tiny_run.task(model), replace(tiny_run.PLAN, epochs=1), out=tmp_path, settings={}))
    assert len(hashed) == count
    list(fit(model, tiny_run.task(model), replace(tiny_run.PLAN, epochs=1), out=tmp_path, settings={}, resume=True))
    assert len(hashed) == 2 * count


@pytest.mark.parametrize("where", ["step", "average", "write before", "write after", "score", "swap", "best"])
def test_interrupted_at_delicate_places(whole: tuple[Path, Plan], tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folder, plan = whole
    owner, name, number = {
        "step": (torch.optim.AdamW, "step", 9), "average": (Ema, "update", 9),
        "write before": (run_files.Run, "write", 10), "write after": (run_files.Run, "write", 10),
        "score": (tiny_run.CaptionTask, "evaluate", 2), "swap": (Ema, "swap", 3),
        "best": (tiny_run.CaptionTask, "save", 3)}[where]
    real, calls = getattr(owner, name), []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number and where.endswith("after"):
            real(*args, **options)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny_run.train(tmp_path, plan=plan)
    tiny_run.train(tmp_path, resume=True, plan=plan)
    same_run(folder, tmp_path)


class Crash(BaseException):
    """As kill -9: nobody catches it."""


def crashed(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Train until the file operation of this number, which is not done; False where there are fewer."""
    real_replace, real_write, calls = os.replace, run_files.Run.write, []

    def count() -> None:
        calls.append(1)
        if len(calls) == number:
            raise Crash

    def replaced(source: Path, target: Path) -> None:
        count()
        real_replace(source, target)

    def write(run: run_files.Run, row: Mapping[str, Any]) -> None:
        try:
            count()
        except Crash:
            with open(run.folder / run_files.HISTORY, "a") as opened:
                opened.write(json.dumps(dict(row))[:9])
            raise
        real_write(run, row)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replaced)
        patched.setattr(run_files.Run, "write", write)
        try:
            tiny_run.train(folder, plan=SHORT, pictures=9)
        except Crash:
            return True
    return False


SHORT = replace(tiny_run.PLAN, epochs=2)  # of 3 steps; a checkpoint after every one


def everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: range) -> int:
    """Crash at each of these file operations, resume and compare; how many there were."""
    tiny_run.train(tmp_path / "whole", plan=SHORT, pictures=9)
    for number in numbers:
        folder = tmp_path / f"run{number}"
        if not crashed(folder, number, monkeypatch):
            return number - 1
        for file in folder.glob("*.safetensors"):
            load(file, verify=True) if file.name != run_files.CHECKPOINT else read_tensors(file)
        resume = (folder / run_files.HISTORY).exists()
        tiny_run.train(folder, resume=resume, plan=SHORT, pictures=9)
        same_run(tmp_path / "whole", folder)
    return len(numbers)


def test_crash_at_file_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # begin: 2; a step: history, checkpoint; an epoch's end: checkpoint, last, best, history, checkpoint
    assert everywhere(tmp_path, monkeypatch, range(7, 15)) == 8


@pytest.mark.slow
def test_crash_at_every_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 20 < everywhere(tmp_path, monkeypatch, range(1, 100)) < 30


@pytest.mark.parametrize("number, times", [(signal.SIGKILL, 12), (signal.SIGTERM, 4)])
def test_killed_at_random_moments(tmp_path: Path, number: int, times: int) -> None:
    program = str(ROOT / "tests" / "tiny_run.py")
    done = subprocess.run(
        [sys.executable, program, str(tmp_path / "run"), str(int(number)), str(times)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tiny_run.train(tmp_path / "whole")
    same_run(tmp_path / "whole", tmp_path / "run")


def test_sigterm_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    rows = fit(Line(), LineTask(), replace(LINE, epochs=2), out=tmp_path, settings={})
    next(rows)
    assert signal.getsignal(signal.SIGTERM) is not before
    rows.close()
    assert signal.getsignal(signal.SIGTERM) is before


# -- folders and settings ------------------------------------------------------------------------------------

def refused(folder: Path, **options: Any) -> str:
    """The one line of a refusal that leaves the folder as it was."""
    before = {file.name: file.read_bytes() for file in folder.glob("*")}
    with pytest.raises(InputError) as raised:
        tiny_run.train(folder, **{"plan": QUICK, **options})
    assert {file.name: file.read_bytes() for file in folder.glob("*")} == before
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    return str(raised.value)


def test_a_run_is_not_overwritten(whole: tuple[Path, Plan]) -> None:
    assert "already holds a run" in refused(whole[0], plan=whole[1])


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert "nothing to resume" in refused(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    assert "nothing to resume" in refused(tmp_path, resume=True)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for out in (file, file / "run"):
        with pytest.raises(InputError, match="is a file, a run needs a folder") as raised:
            run_files.Run(out).check(resume=False)
        assert str(raised.value).startswith(f"{file}: ")
    run_files.Run(tmp_path / "a" / "b").check(resume=False)
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


def test_what_training_found_is_no_setting(tmp_path: Path) -> None:
    list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}))
    before = json.loads((tmp_path / "config.json").read_text())
    run_files.Run(tmp_path).note("look", {"layer": 1, "heads": [0]})
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == {**before, "look": {"layer": 1, "heads": [0]}}
    list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}, resume=True))
    assert json.loads((tmp_path / "config.json").read_text()) == after


def test_a_lost_config_is_written_again(tmp_path: Path) -> None:
    list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}))
    before = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}, resume=True))
    assert (tmp_path / "config.json").read_text() == before


def test_other_settings_are_listed(whole: tuple[Path, Plan]) -> None:
    folder, plan = whole
    line = refused(folder, plan=replace(plan, lr=5e-3, epochs=4), resume=True,
                   settings={"kind": "big", "new": 1})
    for told in ("lr was 0.003, is 0.005", "epochs was 3, is 4", "kind was 'tiny', is 'big'",
                 "new was None, is 1"):
        assert told in line
    assert "seed" not in line
    assert "steps_per_epoch was 6, is 5" in refused(folder, plan=plan, resume=True, pictures=20)


def test_other_model_is_refused(whole: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny_run.captioner
    monkeypatch.setattr(tiny_run, "captioner", lambda **options: small(depth=1, **options))
    assert "another model" in refused(whole[0], plan=whole[1], resume=True)


def test_how_often_is_saved_may_change(whole: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = whole
    with pytest.raises(KeyboardInterrupt):
        tiny_run.train(tmp_path, plan=plan, before=stop_at(7))
    tiny_run.train(tmp_path, plan=replace(plan, save_every=1e-9), resume=True)
    same_run(folder, tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={}))
    for name in (".checkpoint-x1_y2.safetensors", ".best-a.safetensors", ".history-b.jsonl", ".history-c.png",
                 ".tmpgAObXr", ".keep", ".tmp"):
        (tmp_path / name).write_text("half")
    list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={}, resume=True))
    assert {file.name for file in tmp_path.glob(".*")} == {".keep", ".tmp"}


def test_resuming_a_finished_run_does_nothing(whole: tuple[Path, Plan]) -> None:
    folder, plan = whole
    before = story(folder)
    assert tiny_run.train(folder, plan=plan, resume=True) == []
    assert story(folder) == before


@pytest.mark.parametrize("changes", [
    {"epochs": 0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"weight_decay": -0.1}, {"warmup": -1},
    {"clip": -1.0}, {"clip": math.nan}, {"ema": 1.5}, {"ema": -0.1}, {"precision": "fp8"},
    {"optimizer": "adam"}, {"schedule": "linear"}, {"factor": 1.5}, {"period": 0}, {"layer_decay": -1},
    {"sam": -0.1},
    {"momentum": 1.1}, {"momentum": 1.0}, {"ema": 1.0},
    {"time_limit": -1}, {"sam_adaptive": True}, {"sam_local": True}])
def test_plan_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        replace(QUICK, **changes)


def test_damaged_histories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="history"):
        read_history(tmp_path)
    file = tmp_path / run_files.HISTORY
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_history(tmp_path) == [{"step": 1, "loss": 2.0}]
    file.write_text('{"step": 1, "lo\n{"step": 2, "loss": 2.0}\n')
    with pytest.raises(InputError, match="line 1"):
        read_history(tmp_path)


# -- numbers that are not finite -----------------------------------------------------------------------------

def not_finite_loss(loss: Tensor) -> Tensor:
    return loss * math.nan


def not_finite_gradient(loss: Tensor) -> Tensor:
    return loss + (loss * 0).sqrt()  # value 0, slope 0 * inf


@pytest.mark.parametrize("spoil", [not_finite_loss, not_finite_gradient])
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_nan_stops_with_the_last_good_checkpoint(tmp_path: Path, spoil: Callable[[Tensor], Tensor],
                                                 clip: float) -> None:
    plan = replace(tiny_run.PLAN, clip=clip, epochs=2)
    tiny_run.train(tmp_path / "whole", plan=plan, pictures=9)
    with pytest.raises(InputError) as raised:
        tiny_run.train(tmp_path / "run", plan=plan, pictures=9,
                       before=lambda step: spoil if step == 4 else None)
    message = str(raised.value)
    assert message.endswith("try a lower learning rate in another --out")
    assert "step 5" in message and str(tmp_path / "run" / run_files.CHECKPOINT) in message and "\n" not in message
    assert step_of(tmp_path / "run") == 4
    assert [row["step"] for row in read_history(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]
    load(tmp_path / "run" / "best.safetensors", verify=True)
    tiny_run.train(tmp_path / "run", plan=plan, pictures=9, resume=True)  # nothing of the bad step was kept
    same_run(tmp_path / "whole", tmp_path / "run")


def test_nan_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step 1 .*no checkpoint"):
        tiny_run.train(tmp_path, plan=QUICK, before=lambda step: not_finite_loss)


# -- against a loop written out, on a straight line ----------------------------------------------------------

class Line(nn.Module):
    """y = w x + b, in five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 5)[None])
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(nn.functional.dropout(x, 0.3, self.training))[:, 0]


class LineTask:
    """Batches of (seed, epoch); scripted scores."""

    steps = 4

    def __init__(self, scores: tuple[float, ...] = (0.1, 0.5, 0.3, 0.4)) -> None:
        self.scores, self.seen, self.saved, self.modes = list(scores), [], [], []

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(epoch)
        every = [(torch.randn(6, 5, generator=generator), torch.randn(6, generator=generator) * 9)
                 for _ in range(4)]
        return iter(every[start:])

    def parts(self, batch: Any) -> list[tuple[Any, float]]:
        return [(batch, 1.0)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.modes.append(model.training)
        return (model(batch[0]) - batch[1]).square().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        self.seen.append(model.linear.weight.detach().clone())
        return {"score": self.scores[len(self.seen) - 1], "val_loss": 1.0}

    def save(self, model: nn.Module, path: Path, scores: Mapping[str, float]) -> None:
        self.saved.append((path.stem, scores["score"]))


LINE = Plan(epochs=4, lr=0.1, weight_decay=0.3, warmup=3, clip=0.5, ema=0.6, seed=3)


def test_equals_a_loop_written_out(tmp_path: Path) -> None:
    task, model = LineTask(), Line()
    rows = list(fit(model, task, LINE, out=tmp_path, settings={}))
    losses = losses_of(tmp_path)

    other, averages, expected = Line(), [], []
    optimizer = torch.optim.AdamW([{"params": [other.linear.weight], "weight_decay": 0.3},
                                   {"params": [other.linear.bias], "weight_decay": 0.0}], betas=(0.9, 0.98))
    average = other.linear.weight.detach().clone()
    for step in range(16):
        if step % 4 == 0:
            batches = list(task.batches(step // 4, 0))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * schedule("cosine", step, 16, 3)
        torch.manual_seed(step_module.mix(3, step))
        loss = task.loss(other, batches[step % 4])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.square().sum() for p in other.parameters()]).sum().sqrt()
        for parameter in other.parameters():
            parameter.grad.mul_(min(1.0, 0.5 / (norm.item() + 1e-6)))
        optimizer.step()
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * other.linear.weight.detach()
        expected.append(loss.item())
        if step % 4 == 3:
            averages.append(average)
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(model.linear.weight, other.linear.weight)
    torch.testing.assert_close(torch.stack(task.seen), torch.stack(averages))
    assert not torch.allclose(task.seen[-1], model.linear.weight)  # scored the average, kept the weights
    assert all(task.modes) and [row["score"] for row in rows] == [0.1, 0.5, 0.3, 0.4]


def test_the_average_does_not_touch_training(tmp_path: Path) -> None:
    losses = []
    for ema in (0.0, 0.6):
        list(fit(Line(), LineTask(), replace(LINE, ema=ema), out=tmp_path / str(ema), settings={}))
        losses.append(losses_of(tmp_path / str(ema)))
    assert losses[0] == losses[1]


def test_without_clipping_large_gradients_stay(tmp_path: Path) -> None:
    histories = []
    for clip in (0.0, 1e9, 0.5):
        list(fit(Line(), LineTask(), replace(LINE, clip=clip), out=tmp_path / str(clip), settings={}))
        histories.append(losses_of(tmp_path / str(clip)))
    assert histories[0] == histories[1] != histories[2]


def test_best_is_the_highest_first_score(tmp_path: Path) -> None:
    task = LineTask((0.1, 0.5, 0.3, 0.5))
    list(fit(Line(), task, LINE, out=tmp_path, settings={}))
    assert task.saved == [("last", 0.1), ("best", 0.1), ("last", 0.5), ("best", 0.5), ("last", 0.3),
                          ("last", 0.5)]


def test_best_is_remembered_across_a_stop(tmp_path: Path) -> None:
    rows = fit(Line(), LineTask(), LINE, out=tmp_path, settings={})
    next(rows), next(rows)
    rows.close()
    task = LineTask((0.3, 0.6))
    list(fit(Line(), task, LINE, out=tmp_path, settings={}, resume=True))
    assert task.saved == [("last", 0.3), ("last", 0.6), ("best", 0.6)]


def test_groups_are_those_of_decay_groups(tmp_path: Path) -> None:
    groups = decay_groups(Line(), 0.3)
    assert [(group["names"], group["weight_decay"]) for group in groups] == [
        (["linear.weight"], 0.3), (["linear.bias"], 0.0)]


def test_progress_is_told_where_it_stands(tmp_path: Path) -> None:
    told = []

    def progress(batches: Iterator[Any], **options: Any) -> Iterator[Any]:
        told.append(options)
        return batches

    def stop(model: nn.Module, batch: Any, task: LineTask = LineTask()) -> Tensor:
        if len(task.modes) == 2:
            raise KeyboardInterrupt
        return LineTask.loss(task, model, batch)

    stopping = LineTask()
    stopping.loss = stop  # type: ignore[method-assign]
    plan = replace(LINE, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        list(fit(Line(), stopping, plan, out=tmp_path, settings={}))
    list(fit(Line(), LineTask(), plan, out=tmp_path, settings={}, resume=True, progress=progress))
    assert told == [{"total": 4, "initial": 2, "desc": "epoch 1"}]


# -- damaged folders -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("line", ["[1]", "5", '{"loss": 1}', '{"step": "1"}', "\x00", "[" * 5000])
def test_a_damaged_line_of_the_history_is_named(line: str, tmp_path: Path) -> None:
    good = '{"step": 1, "loss": 2.0, "note": "a\u2028b"}'
    (tmp_path / "history.jsonl").write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(InputError, match="history.jsonl: line 2 "):
        read_history(tmp_path)
    (tmp_path / "history.jsonl").write_text(f"{good}\n\n{good}\n{line}", encoding="utf-8")  # cut at the end: left out
    assert [row["step"] for row in read_history(tmp_path)] == [1, 1]


def test_weights_without_a_checkpoint_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    with pytest.raises(InputError, match="no checkpoint.safetensors"):
        Run(tmp_path).check(resume=True)


@pytest.mark.parametrize("saved", [{}, {"step": "3"}, {"step": -1, "epoch": 0, "sum": 0, "best": None, "seconds": 0},
                                   {"step": 1, "epoch": 0, "sum": "x", "best": None, "seconds": 0}])
def test_a_damaged_checkpoint_is_one_line(saved: dict[str, object], tmp_path: Path) -> None:
    for name in ("history.jsonl", "checkpoint.safetensors"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="checkpoint.safetensors: is damaged"):
        Run(tmp_path).open({}, True, lambda path: saved)


@pytest.mark.parametrize("line", ["null", '{"step": true}', '{"step": 1, "epoch": "1"}', '{"step": 1.5}', "\udcff"])
def test_other_damaged_lines(line: str, tmp_path: Path) -> None:
    text = f'{{"step": 1}}\n \n{line}\n{{"step": 2}}\n'
    (tmp_path / "history.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="history.jsonl: line 3 "):
        read_history(tmp_path)


def lost(folder: Path, *names: str) -> None:
    list(fit(Line(), LineTask(), LINE, out=folder, settings={"kind": "line"}))
    for name in names:
        (folder / name).unlink()


def test_a_lost_checkpoint_is_no_reason_to_begin_again(tmp_path: Path) -> None:
    lost(tmp_path, run_files.CHECKPOINT)
    history = (tmp_path / run_files.HISTORY).read_bytes()
    with pytest.raises(InputError, match="its checkpoint is missing"):
        list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}, resume=True))
    assert (tmp_path / run_files.HISTORY).read_bytes() == history
    (tmp_path / run_files.HISTORY).write_text('{"step": 1, "loss": 2.0}\n')  # killed in its first epoch
    assert len(list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}, resume=True))) == 4


def test_a_run_without_a_step_is_begun_anew(tmp_path: Path) -> None:
    """What it left is replaced; one with a step, or with weights, is not."""
    def begin(**settings: Any) -> None:
        list(fit(Line(), LineTask(), LINE, out=tmp_path, settings=settings))

    for name, text in ((run_files.CONFIG, '{"kind": "curve"}'), (run_files.HISTORY, "\n"),
                       (run_files.SKIPPED, "a.jpg: is no picture"), (".config-a.json", "half")):
        (tmp_path / name).write_text(text)
    begin(kind="line")
    assert json.loads((tmp_path / run_files.CONFIG).read_text())["kind"] == "line"
    assert not (tmp_path / run_files.SKIPPED).exists() and not list(tmp_path.glob(".*"))
    (tmp_path / run_files.CHECKPOINT).unlink()
    for name in (run_files.BEST, run_files.LAST):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="already holds a run"):
        begin(kind="line")  # its history has steps
    (tmp_path / run_files.HISTORY).write_text("")
    (tmp_path / run_files.BEST).write_bytes(b"weights")
    with pytest.raises(InputError, match="already holds a run"):
        begin(kind="line")


@pytest.mark.parametrize("resume", [False, True])
def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, resume: bool) -> None:
    pytest.importorskip("fcntl")
    rows = fit(Line(), LineTask(), LINE, out=tmp_path, settings={})
    next(rows)
    for refused in (lambda: Run(tmp_path).check(resume),
                    lambda: list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={}, resume=resume))):
        with pytest.raises(InputError, match="another process is training here") as raised:
            refused()
        assert str(raised.value).startswith(f"{tmp_path}: ")
    assert len(list(rows)) == LINE.epochs - 1 and not (tmp_path / run_files.LOCK).exists()
    assert list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={}, resume=True)) == []


@pytest.mark.parametrize("changes, told", [
    ({"warmup": 16}, "the learning rate rises for 16 steps, and all epochs together have 16"), ({"warmup": 15}, ""),
    ({"lr": 0.0}, "learning rate 0: no weight will change")])
def test_rates_that_are_hardly_meant_are_told(tmp_path: Path, changes: dict[str, Any], told: str,
                                              caplog: pytest.LogCaptureFixture) -> None:
    list(fit(Line(), LineTask(), replace(LINE, **changes), out=tmp_path, settings={}))
    assert told in caplog.text and bool(told) == bool(caplog.records)


def test_how_to_go_on_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def told(first: bool = True) -> list[str]:
        caplog.clear()
        with pytest.raises(KeyboardInterrupt), Run(tmp_path).stoppable(first):
            raise KeyboardInterrupt
        return caplog.messages

    assert told() == ["told to end before a checkpoint was written: there is nothing to go on from"]
    rows = fit(Line(), LineTask(), LINE, out=tmp_path, settings={})
    next(rows)
    rows.close()
    assert told() == ["told to end: --resume goes on from step 4"] and told(first=False) == []


def test_settings_are_held_against_the_checkpoint_too(tmp_path: Path) -> None:
    lost(tmp_path, run_files.CONFIG)
    for plan, kind, told in ((replace(LINE, lr=0.2), "line", "lr was 0.1, is 0.2"),
                             (LINE, "curve", "kind was 'line', is 'curve'")):
        with pytest.raises(InputError, match=told):
            list(fit(Line(), LineTask(), plan, out=tmp_path, settings={"kind": kind}, resume=True))
    assert not (tmp_path / run_files.CONFIG).exists()


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    lost(tmp_path)
    (tmp_path / run_files.CONFIG).write_text("[1]")
    with pytest.raises(InputError, match="config.json: is damaged"):
        list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}, resume=True))


@pytest.mark.parametrize("changes", [{"step": 3}, {"step": 17}, {"step": True}, {"best": "x"}, {"sum": None},
                                     {"settings": 5}])
def test_progress_that_cannot_be(tmp_path: Path, changes: dict[str, Any]) -> None:
    lost(tmp_path)
    path = tmp_path / run_files.CHECKPOINT
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, {"training": json.dumps({**json.loads(header["training"]), "epoch": 3, **changes})})
    with pytest.raises(InputError, match="checkpoint.safetensors: is damaged: "):
        list(fit(Line(), LineTask(), LINE, out=tmp_path, settings={"kind": "line"}, resume=True))


@pytest.mark.parametrize("name", ["link", "link/run", "x" * 300, "/proc/nowhere/run"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no run can be written here .*give another --out"):
        run_files.Run(tmp_path / name).check(resume=False)
    assert [file.name for file in tmp_path.iterdir()] == ["link"]


def test_a_rate_for_the_encoder() -> None:
    assert Plan(epochs=1, lr=0.2).encoder_scale == 1 and Plan(epochs=1, lr=0.0).encoder_scale == 1
    assert Plan(epochs=1, lr=0.2, encoder_lr=0.05).encoder_scale == 0.25
    for changes in ({"encoder_lr": -1.0}, {"encoder_lr": math.nan}, {"encoder_lr": 0.1, "lr": 0.0}):
        with pytest.raises(InputError, match="encoder_lr=.*: give a number from 0 up, beside an lr above 0"):
            Plan(**{"epochs": 1, "lr": 0.1, **changes})


def test_what_a_plan_allows_is_told() -> None:
    for changes, told in (({"lr": -1.0}, "lr=-1.0: give a number from 0 up"), ({"epochs": 0}, "from 1 up"),
                          ({"ema": 2.0}, "ema=2.0: give a number from 0 to 1")):
        with pytest.raises(InputError, match=told):
            replace(QUICK, **changes)
