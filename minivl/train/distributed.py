"""Several processes that train one model: each computes its share of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError

T = TypeVar("T")


class Processes:
    """A process among those of `torchrun`, or alone.

    Args:
        rank: number of this process.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, model: nn.Module) -> nn.Module:
        """The model as losses are computed with it: gradients are averaged over the processes."""
        if self.count == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None,
                                       broadcast_buffers=False)

    def together(self, model: nn.Module, synchronise: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and backward pass: whether gradients are averaged at its end."""
        if isinstance(model, DistributedDataParallel) and not synchronise:
            return model.no_sync()
        return contextlib.nullcontext()

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.count == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.all_reduce(numbers)
        return numbers.item()

    def any(self, value: bool) -> bool:
        """Whether it is true in any of them."""
        return self.sum(float(value)) > 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            dist.barrier()

    def first_then_all(self, first: Callable[[], T], others: Callable[[], T]) -> T:
        """What the first process gives, and after it the others theirs."""
        value = first() if self.first else None
        self.wait()
        return value if value is not None else others()


ALONE = Processes()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextlib.contextmanager
def processes(device: torch.device) -> Any:
    """The processes that `torchrun` started, this one among them; without it, one alone.

    Args:
        device: where this process computes; of several GPUs each takes its own.

    Yields:
        ``(processes, device)``.

    Raises:
        InputError: they cannot find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torchrun's processes do not find each other ({error})") from None
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
