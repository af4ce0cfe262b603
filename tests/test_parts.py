"""Folders to which processes write their parts of tensors, here those of one process; of two: test_distributed.py."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from minivl.errors import InputError
from minivl.files import read_tensors, write_tensors
from minivl.train import parts
from minivl.train.interrupts import Interrupts


@pytest.fixture(scope="module")
def tensors() -> Iterator[dict[str, Tensor]]:
    """Of several shapes and types, each whole with the one process there is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh, draw = init_device_mesh("cpu", (1,)), torch.Generator().manual_seed(0)
    plain = {"a.weight": torch.randn(4, 6, generator=draw), "b": torch.randn(2, 3, 5, generator=draw).double(),
             "c": torch.randn(4, generator=draw).bfloat16()}
    yield {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in plain.items()}
    dist.destroy_process_group()


def read(folder: Path) -> dict[str, Tensor]:
    found = {name: torch.empty_like(tensor, device="cpu") for name, tensor in parts.part_tensors(folder).items()}
    parts.read_parts(folder, found)
    return found


def halved(folder: Path, place: int) -> None:
    """A process's file as two would have written it: of each tensor only one half, the first or second."""
    file = folder / "1-of-1.safetensors"
    held, header = read_tensors(file)
    entries, kept, told = json.loads(header["parts"]), {}, {}
    for key, tensor in held.items():
        half = tensor.shape[0] // 2
        offsets = [half * place, *entries[key]["offsets"][1:]]
        kept[f"{entries[key]['name']} from {offsets}"] = tensor[half * place:half * (place + 1)].clone()
        told[f"{entries[key]['name']} from {offsets}"] = {**entries[key], "offsets": offsets}
    write_tensors(folder / f"{place + 1}-of-2.safetensors", kept, {"parts": json.dumps(told)})


def test_shapes_types_and_values(tensors: dict[str, Any], tmp_path: Path) -> None:
    parts.write_parts(tmp_path / "run", tensors)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["1-of-1.safetensors"]
    found = read(tmp_path / "run")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a.weight": torch.float32, "b": torch.float64, "c": torch.bfloat16}
    assert all(torch.equal(found[name], tensor.full_tensor()) for name, tensor in tensors.items())
    assert parts.has_parts(tmp_path / "run", tensors)
    assert not parts.has_parts(tmp_path / "run", {**tensors, "d": tensors["c"]})
    assert not parts.has_parts(tmp_path / "none", tensors)
    again = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}  # as parts
    parts.read_parts(tmp_path / "run", again)
    assert all(torch.equal(again[name].full_tensor(), tensor.full_tensor()) for name, tensor in tensors.items())


def test_halves_of_two_and_the_same_half_twice(tensors: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    parts.write_parts(run, tensors)
    halved(run, 0)
    halved(run, 1)
    (run / "1-of-1.safetensors").unlink()
    assert all(torch.equal(tensor, tensors[name].full_tensor()) for name, tensor in read(run).items())
    (run / "2-of-2.safetensors").write_bytes((run / "1-of-2.safetensors").read_bytes())
    with pytest.raises(InputError, match="is in 1-of-2.safetensors too"):
        read(run)
    assert not parts.has_parts(run, tensors)


@pytest.mark.parametrize("error, raised, told", [
    (KeyboardInterrupt(), KeyboardInterrupt, ""), (OSError(28, "No space left on device"), OSError, "No space left"),
    (MemoryError("full"), (OSError, MemoryError), "full")])
def test_what_stops_is_no_damage(tensors: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 error: BaseException, raised: Any, told: str) -> None:
    parts.write_parts(tmp_path / "run", tensors)

    def fails(*args: Any) -> None:
        raise error

    metadata = parts._Reader(tmp_path / "run").read_metadata()  # the header was read; the rest fails
    monkeypatch.setattr(parts._Reader, "read_data", fails)
    with pytest.raises(raised, match=told or None) as stopped:
        parts.read_parts(tmp_path / "run", {name: tensor.full_tensor() for name, tensor in tensors.items()})
    assert not isinstance(stopped.value, InputError) and len(metadata.state_dict_metadata) == 3
    monkeypatch.setattr(parts, "write_tensors", fails)
    with pytest.raises(raised, match=told or None) as stopped:
        parts.write_parts(tmp_path / "other", tensors)
    if not isinstance(error, KeyboardInterrupt):
        assert "a process cannot write its part (" in str(stopped.value) and "()" not in str(stopped.value)[-3:]


def test_nothing_but_parts_is_removed(tensors: dict[str, Any], tmp_path: Path) -> None:
    parts.write_parts(tmp_path / "run", tensors)
    (tmp_path / "run" / ".2-of-2-abc_1.safetensors").write_text("what a killed process left")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "mine" / "1-of-1.safetensors").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("link", "mine", "empty", "none"):
        parts.remove_parts(tmp_path / name)
    assert len(list((tmp_path / "mine").iterdir())) == 2 and (tmp_path / "empty").is_dir()
    assert len(list((tmp_path / "run").iterdir())) == 2
    parts.remove_parts(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_signals_within_steps_of_several() -> None:
    """The first is noted, another SIGTERM is no news, a second Ctrl-C stops at once."""
    with Interrupts(several=True) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):  # at the end of the block
            with interrupts.held():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGTERM)
                assert interrupts.noted
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Interrupts() as alone, pytest.raises(KeyboardInterrupt), alone.held():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("a process alone is interrupted at once")
