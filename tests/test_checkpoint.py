"""Training states on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from torch import nn

from minivl.errors import InputError
from minivl.files import read_tensors, tensor_bytes, write_tensors
from minivl.models.captioner import Captioner
from minivl.train.checkpoint import frozen_hash, load_checkpoint, save_checkpoint
from minivl.train.optim import Ema, decay_groups


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.98))


def steps(model: Captioner, optimizer: torch.optim.Optimizer, ema: Ema | None, first: int,
          last: int) -> list[float]:
    """Losses of training steps that depend on their number alone."""
    task, losses = tiny_run.task(model), []
    batches = list(task.batches(0, 0))
    for step in range(first, last):
        torch.manual_seed(step)
        loss = task.loss(model.train(), batches[step % len(batches)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if ema is not None:
            ema.update(model)
        losses.append(loss.item())
    return losses


def test_bytes_of_a_tensor() -> None:
    numbers = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    assert tensor_bytes(numbers) == b"".join(number.to_bytes(2, "little") for number in range(6))
    assert tensor_bytes(numbers.T) == b"".join(number.to_bytes(2, "little") for number in (0, 3, 1, 4, 2, 5))
    assert tensor_bytes(torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True)) == b"\xc0\x3f"
    assert tensor_bytes(torch.empty(0, 3)) == b""


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("stem", [(), (6, 6)])
def test_continues_bit_for_bit(tmp_path: Path, averaged: bool, stem: tuple[int, ...]) -> None:
    model = tiny_run.captioner(dropout=0.1, stem=stem)
    optimizer, ema = adamw(model), Ema(model, 0.9) if averaged else None
    steps(model, optimizer, ema, 0, 3)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, ema, {"step": 3, "sum": 0.1 + 0.2})
    expected = steps(model, optimizer, ema, 3, 7)

    other = tiny_run.captioner(dropout=0.1, seed=99, stem=stem)
    other_optimizer, other_ema = adamw(other), Ema(other, 0.9) if averaged else None
    progress = load_checkpoint(tmp_path / "c.safetensors", other, other_optimizer, other_ema)
    assert progress["step"] == 3 and progress["sum"] == 0.1 + 0.2  # exact through JSON
    assert steps(other, other_optimizer, other_ema, 3, 7) == expected
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(one, two), name
    if averaged:
        assert ("encoder.patch_embed.stem.1.running_var" in ema.shadow) == bool(stem)
        assert other_ema.updates == 7
        assert all(torch.equal(ema.shadow[name], other_ema.shadow[name]) for name in ema.shadow)


def test_losing_the_optimiser_would_show(tmp_path: Path) -> None:
    model = tiny_run.captioner()
    optimizer = adamw(model)
    steps(model, optimizer, None, 0, 3)
    other = copy.deepcopy(model)
    assert steps(other, adamw(other), None, 3, 6) != steps(model, optimizer, None, 3, 6)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for saves in (False, True):
        model = tiny_run.captioner()
        optimizer, ema = adamw(model), Ema(model, 0.9)
        losses = steps(model, optimizer, ema, 0, 2)
        if saves:
            save_checkpoint(tmp_path / "c.safetensors", model, optimizer, ema, {"step": 2})
        runs.append(losses + steps(model, optimizer, ema, 2, 4))
    assert runs[0] == runs[1]


def test_before_the_first_step(tmp_path: Path) -> None:
    model = tiny_run.captioner()
    save_checkpoint(tmp_path / "c.safetensors", model, adamw(model), None, {"step": 0})
    other = tiny_run.captioner(seed=4)
    optimizer = adamw(other)
    load_checkpoint(tmp_path / "c.safetensors", other, optimizer, None)
    assert steps(other, optimizer, None, 0, 2) == steps(model, adamw(model), None, 0, 2)


def test_frozen_weights_are_left_out_but_held_against(tmp_path: Path) -> None:
    def frozen(seed: int) -> Captioner:
        model = tiny_run.captioner(seed=seed)
        model.encoder.requires_grad_(False)
        return model

    path = tmp_path / "c.safetensors"
    model = frozen(0)
    save_checkpoint(path, model, adamw(model), Ema(model, 0.9), {"step": 0})
    assert not any("encoder." in name for name in read_tensors(path)[0])
    other = frozen(3)
    with pytest.raises(InputError, match="frozen"):
        load_checkpoint(path, other, adamw(other), Ema(other, 0.9))
    other.encoder.load_state_dict(model.encoder.state_dict())
    load_checkpoint(path, other, adamw(other), Ema(other, 0.9))
    assert torch.equal(other.proj.weight, model.proj.weight)


def test_hash_of_what_is_frozen() -> None:
    def changed(name: str) -> str:
        model = tiny_run.captioner(stem=(6, 6))
        model.encoder.requires_grad_(False)
        if name:
            model.state_dict()[name].add_(1)
        return frozen_hash(model)

    assert changed("") == changed("decoder.norm.bias") == changed("proj.weight")
    others = {changed(name) for name in ("", "encoder.pos_embed", "encoder.patch_embed.stem.1.running_mean")}
    assert len(others) == 3


def wrong(path: Path, model: Captioner, ema: Ema | None) -> str:
    """The message of a refused checkpoint, the model being untouched."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError) as raised:
        load_checkpoint(path, model, adamw(model), ema)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    message = str(raised.value)
    assert "\n" not in message and str(path) in message
    return message


def test_another_model_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model = tiny_run.captioner()
    optimizer, ema = adamw(model), Ema(model, 0.9)
    steps(model, optimizer, ema, 0, 1)
    save_checkpoint(path, model, optimizer, ema, {"step": 1})
    wider = tiny_run.captioner(width=24)
    assert "another model" in wrong(path, wider, Ema(wider, 0.9))
    deeper = tiny_run.captioner(depth=3)
    assert "decoder.blocks.2" in wrong(path, deeper, Ema(deeper, 0.9))
    shallower = tiny_run.captioner(depth=1)
    assert "decoder.blocks.1" in wrong(path, shallower, Ema(shallower, 0.9))
    assert "ema." in wrong(path, tiny_run.captioner(), None)
    thawed = tiny_run.captioner()
    thawed.encoder.requires_grad_(False)
    assert "encoder." in wrong(path, thawed, Ema(thawed, 0.9))


def test_average_asked_for_but_not_there(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model = tiny_run.captioner()
    save_checkpoint(path, model, adamw(model), None, {"step": 0})
    assert "ema." in wrong(path, model, Ema(model, 0.9))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    model = tiny_run.captioner()
    assert "no such file" in wrong(tmp_path / "none.safetensors", model, None)
    write_tensors(tmp_path / "other.safetensors", model.state_dict())
    assert "no training checkpoint" in wrong(tmp_path / "other.safetensors", model, None)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, model, adamw(model), None, {"step": 0})
    path.write_bytes(path.read_bytes()[:-50])
    assert "not a whole safetensors file" in wrong(path, model, None)


def damaged(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> str:
    """The refusal of a checkpoint of one step in which something was changed."""
    model = tiny_run.captioner()
    optimizer, ema = adamw(model), Ema(model, 0.9)
    steps(model, optimizer, ema, 0, 1)
    save_checkpoint(path, model, optimizer, ema, {"step": 1})
    tensors, header = read_tensors(path)
    told = json.loads(header["training"])
    change(tensors, told)
    write_tensors(path, tensors, {"training": json.dumps(told)})
    return wrong(path, model, ema)


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq"])
def test_missing_moments_are_damage(tmp_path: Path, key: str) -> None:
    name = f"optimizer.{key}.proj.weight"
    path = tmp_path / "c.safetensors"
    for change in (lambda tensors, told: tensors.pop(name),
                   lambda tensors, told: tensors.update({name: torch.zeros(3)}),
                   lambda tensors, told: tensors.update({name: tensors[name] * torch.nan})):
        assert f"is damaged: the optimiser's {key} of proj.weight" in damaged(path, change)


def without(tensors: dict[str, torch.Tensor], ends: str) -> None:
    for name in [name for name in tensors if name.startswith("optimizer.") and name.endswith(ends)]:
        del tensors[name]


@pytest.mark.parametrize("change", [
    lambda tensors, told: without(tensors, ""), lambda tensors, told: without(tensors, "proj.weight"),
    lambda tensors, told: (without(tensors, ""), told.pop("moments")),
    lambda tensors, told: tensors.update({"optimizer.exp_avg.nowhere": torch.zeros(2)}),
    lambda tensors, told: tensors.update({"optimizer.x": torch.zeros(2)}),
    lambda tensors, told: told.pop("step"), lambda tensors, told: told.update(step="1"),
    lambda tensors, told: told.update(moments=3), lambda tensors, told: told.update(moments=["nowhere"]),
    lambda tensors, told: told.pop("ema_updates"), lambda tensors, told: told.update(ema_updates=None)])
def test_other_damage(tmp_path: Path, change: Any) -> None:
    assert "is damaged: " in damaged(tmp_path / "c.safetensors", change)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "null"])
def test_a_header_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, {"training": text})
    assert "is damaged: " in wrong(path, tiny_run.captioner(), None)
