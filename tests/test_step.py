"""What must not change a training beyond rounding: micro-batches, precisions, activations computed twice."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import Tensor

from minivl.errors import InputError
from minivl.loading import load
from minivl.train.loop import Plan, fit
from minivl.train.optim import decay_groups, make_optimizer
from minivl.train.run import Run, read_history
from minivl.train.step import Stepper, mix

PLAN = replace(two_processes.SGD, epochs=2, sam=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def losses(folder: Path, plan: Plan = PLAN, checkpointing: bool = False, model: dict[str, Any] = {},
           **options: Any) -> Tensor:
    """Train two epochs of 7 steps; the loss of each."""
    one = two_processes.vit(**model)
    one.checkpointing = checkpointing
    list(fit(one, two_processes.task(one, **options), plan, out=folder, settings={}))
    assert all(weight.dtype == torch.float32 for weight in load(folder / "last.safetensors").parameters())
    return torch.tensor([row["loss"] for row in read_history(folder) if "loss" in row], dtype=torch.float64)


def test_micro_batches_the_average_and_computing_twice(tmp_path: Path) -> None:
    for name, plan in (("plain", PLAN), ("sam", replace(PLAN, sam=0.05, optimizer="adamw", lr=3e-3))):
        plain = losses(tmp_path / f"{name}", plan)
        assert plain.shape == (14,) and (plain[0] - plain[-1]).abs() > 0.05
        for accumulate in (2, 4):
            found = losses(tmp_path / f"{name}{accumulate}", plan, accumulate=accumulate)
            assert (found - plain).abs().max() < 2e-6
        assert torch.equal(losses(tmp_path / f"{name}e", replace(plan, ema=0.5)), plain)
        assert torch.equal(losses(tmp_path / f"{name}n", replace(plan, ema=0.0)), plain)
        # the saved weights are the average
        pair = [load(tmp_path / one / "last.safetensors").state_dict() for one in (f"{name}e", f"{name}n")]
        assert (pair[0]["head.weight"] - pair[1]["head.weight"]).abs().max() > 1e-4


def test_activations_computed_twice_drop_the_same_paths(tmp_path: Path) -> None:
    found = [losses(tmp_path / f"{drop}{twice}", checkpointing=twice, model={"drop_path": drop, "dropout": drop})
             for drop in (0.0, 0.4) for twice in (False, True)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert (found[0] - found[2]).abs().max() > 1e-2
    model = two_processes.vit(drop_path=0.4).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), two_processes.vit().eval()(images))


@pytest.mark.parametrize("changes", [{}, {"sam": 0.05}])
def test_half_precision_trains_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = replace(PLAN, **changes)
    exact = losses(tmp_path / "fp32", plan)
    for precision, tolerance in (("bf16", 0.03), ("fp16", 0.005)):
        found = losses(tmp_path / precision, replace(plan, precision=precision), accumulate=2)
        error = (found - exact).abs().max()
        assert 0 < error < tolerance, error
        assert (exact[0] - exact[-1]).abs() > 2 * tolerance


def stepper(plan: Plan, model: Any) -> Stepper:
    return Stepper(model, two_processes.task(model), plan, make_optimizer("sgd", decay_groups(model, 0.0)),
                   two_processes.ALONE)


def test_a_step_that_overflows_is_left_out(tmp_path: Path) -> None:
    """The scaler scales less then; where it must scale ever less, training has diverged, and says so."""
    model = two_processes.vit()
    one = stepper(replace(PLAN, precision="fp16", sam=0.05), model)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 60)
    batch = next(two_processes.task(model).batches(0, 0))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert math.isfinite(one.gradients(batch, 0.1, 0, Run(tmp_path)))
    one.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert one.scaler.get_scale() == 2.0 ** 59
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    one.gradients(batch, 0.1, 1, Run(tmp_path))
    one.step()
    assert not torch.equal(model.head.weight, before["head.weight"])
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(InputError, match="gradient is not finite at step"):
        for step in range(2, 100):
            one.gradients(batch, 0.1, step, Run(tmp_path))
            one.step()
    assert 20 < step < 60 and all(weight.isfinite().all() for weight in model.parameters())


def test_processes_draw_unlike_numbers() -> None:
    """Else they would drop the same paths of their shares."""
    found = {mix(mix(seed, step), rank) if rank else mix(seed, step)
             for seed in range(5) for step in range(50) for rank in range(4)}
    assert len(found) == 1000
