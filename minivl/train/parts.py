"""Tensors that several processes keep parts of, in a folder to which each process writes one safetensors file.

`torch.distributed.checkpoint` plans who writes and who reads what, so that any number of processes, or one alone, can
read what others wrote. Its own files are pickled; ours are not, and each tells in its header which parts it has.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties,
                                                   TensorStorageMetadata)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ..errors import InputError, some
from ..files import open_tensors, undamaged, write_tensors

SUFFIX = ".safetensors"
PART = re.compile(r"\d+-of-\d+\.safetensors|\.\d+-of-\d+-\w+\.safetensors")  # whole; what a killed process left


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write DTensors; every process must call this, and all return when all have written.

    Args:
        folder: of these parts alone; seen by every process.
        tensors: name -> DTensor, the same names in each process.

    Raises:
        OSError: a process cannot write its own; in every process.
    """
    try:
        dcp.save(dict(tensors), storage_writer=_Writer(folder))
    except dcp.CheckpointException as error:  # which is no Exception
        cause = _cause(error)
        raise OSError(f"{folder}: a process cannot write its part ({cause or repr(cause)})") from None


def read_parts(folder: Path, wanted: Mapping[str, Tensor]) -> None:
    """Fill tensors, or the parts of them that this process keeps, from a folder of `write_parts`; no process waits.

    Args:
        folder: written by any number of processes.
        wanted: name -> tensor or DTensor of the shape that `part_tensors` tells.

    Raises:
        InputError: files are missing, damaged or do not belong together.
        OSError: they cannot be read.
    """
    with undamaged(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose: others may not be there
        try:
            dcp.load(dict(wanted), storage_reader=_Reader(folder), no_dist=True)
        except dcp.CheckpointException as error:
            cause = _cause(error)
            if isinstance(cause, (InputError, OSError, MemoryError)):
                raise cause from None
            raise InputError(f"is damaged: {cause or repr(cause)}", source=folder) from None


def _cause(error: dcp.CheckpointException) -> BaseException:
    """What failed in one of the processes.

    Raises:
        KeyboardInterrupt: one of them was interrupted.
    """
    causes = [cause for cause, _ in error.failures.values()]
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        raise KeyboardInterrupt from None
    return causes[0]


def part_tensors(folder: Path) -> dict[str, Tensor]:
    """Name, whole shape and type of each tensor in a folder of `write_parts`: tensors without memory (device "meta").

    Raises:
        InputError: files are missing, damaged or do not belong together.
    """
    found = cast(dict[str, TensorStorageMetadata], _Reader(folder).read_metadata().state_dict_metadata)
    return {name: torch.empty(kept.size, dtype=kept.properties.dtype, device="meta") for name, kept in found.items()}


def has_parts(folder: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether this process sees all parts of these tensors there."""
    try:
        return part_tensors(folder).keys() >= tensors.keys()
    except InputError:
        return False


def remove_parts(folder: Path) -> None:
    """Remove a folder of `write_parts`; one that holds anything else stays as it is."""
    files = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    if files and all(PART.fullmatch(file.name) for file in files):
        for file in files:
            file.unlink()
        folder.rmdir()


class _Writer(StorageWriter):
    """Each process writes one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        entries: dict[str, dict[str, Any]] = {}
        results = []
        for item in plan.items:
            told = item.tensor_data
            assert told is not None  # nothing but tensors is written here
            results.append(WriteResult(item.index, math.prod(told.chunk.sizes), None))
            if math.prod(told.chunk.sizes):  # of fewer rows than processes some have none
                key = f"{item.index.fqn} from {list(told.chunk.offsets)}"
                tensors[key] = cast(Tensor, planner.resolve_data(item)).detach()
                entries[key] = {"name": item.index.fqn, "offsets": list(told.chunk.offsets), "size": list(told.size),
                                "dtype": str(tensors[key].dtype).removeprefix("torch.")}
        number, count = dist.get_rank(), dist.get_world_size()
        write_tensors(self._folder / f"{number + 1}-of-{count}{SUFFIX}", tensors, {"parts": json.dumps(entries)})
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        pass  # each file says what it has

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _Reader(StorageReader):
    """Each process reads what it needs from whichever files have it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[MetadataIndex, tuple[Path, str]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the files have, together.

        Raises:
            InputError: they are damaged, or parts are missing.
        """
        found: dict[str, TensorStorageMetadata] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with undamaged(path), open_tensors(path) as (opened, header):
                for key, entry in json.loads(header["parts"]).items():
                    name, offsets, size = entry["name"], torch.Size(entry["offsets"]), torch.Size(entry["size"])
                    shape = torch.Size(opened.get_slice(key).get_shape())
                    kind = getattr(torch, entry["dtype"])
                    whole = found.setdefault(name, TensorStorageMetadata(TensorProperties(kind), size, []))
                    whole.chunks.append(ChunkStorageMetadata(offsets, shape))
                    if size != whole.size or not len(size) == len(shape) == len(offsets) or any(
                            start + length > most for start, length, most in zip(offsets, shape, size)):
                        raise ValueError(f"{key} does not fit into {list(whole.size)}")
                    if MetadataIndex(name, offsets) in self._places:
                        raise ValueError(f"{key} is in {self._places[MetadataIndex(name, offsets)][0].name} too")
                    self._places[MetadataIndex(name, offsets)] = path, key
        # processes keep parts that do not overlap
        if lacking := [name for name, kept in found.items()
                       if sum(math.prod(chunk.sizes) for chunk in kept.chunks) != math.prod(kept.size)]:
            raise InputError(f"is damaged: parts of {some(lacking, 4)} are missing", source=self._folder)
        return Metadata(dict(found))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for path in sorted({self._places[item.storage_index][0] for item in plan.items}):
            with open_tensors(path) as (opened, _):
                for item in plan.items:
                    place, key = self._places[item.storage_index]
                    if place != path:
                        continue
                    assert item.type == LoadItemType.TENSOR
                    within = tuple(slice(start, start + length)
                                   for start, length in zip(item.storage_offsets, item.lengths))
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(opened.get_slice(key)[within])
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
