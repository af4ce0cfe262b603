"""Several processes that train one model: each computes its share of every batch."""

from __future__ import annotations

import contextlib
import copy
import datetime
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=2)  # the others wait for the first while it scores
# buffers stay as each process has them; torch 2.15 calls the option otherwise
_KNOWN = inspect.signature(DistributedDataParallel).parameters
_OPTION = "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers"
KEEP_BUFFERS: dict[str, Any] = {_OPTION: False}


class Processes:
    """A process among those of `torchrun`, or alone.

    Args:
        rank: number of this process.
        count: how many there are.
        shard: each process keeps a part of every weight, gradient and moment (FSDP2) instead of all of them (DDP).
    """

    def __init__(self, rank: int = 0, count: int = 1, shard: bool = False) -> None:
        self.rank, self.count, self.shard = rank, count, shard
        self._blank: nn.Module | None = None  # the model before it was cut, without memory for its weights
        self._sharded: FSDPModule | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, model: nn.Module, wrap: Callable[[nn.Module], nn.Module] | None = None,
              compiled: bool = False) -> nn.Module:
        """The model as losses are computed with it: gradients are averaged over the processes. With `shard` its own
        parameters become parts, so that optimisers are to be made afterwards.

        Args:
            model: on its device.
            wrap, compiled: see `minivl.train.loop.fit`.

        Raises:
            InputError: a weight that is one number, with `shard`: nobody could keep a part of it.
        """
        device = next(model.parameters()).device
        blank = _with(model, {tensor: torch.empty_like(tensor, device="meta") for tensor in model.parameters()}
                      ) if self.count > 1 and self.shard else None
        wrapped = model if wrap is None else wrap(model)
        if blank is not None:
            if numbers := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
                raise InputError(f"{numbers[0]} is one number, of which processes cannot keep parts: leave out shard")
            mesh = init_device_mesh(device.type, (self.count,))
            for name, module in list(model.named_modules()):
                if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
                    for block in module:
                        fully_shard(block, mesh=mesh)
            # outermost, so that weights beside the blocks are whole wherever the loss asks for them
            self._blank, self._sharded = blank, fully_shard(wrapped, mesh=mesh)
        if compiled:
            wrapped = cast(nn.Module, torch.compile(wrapped))
        if self.count == 1 or self.shard:
            return wrapped
        return DistributedDataParallel(wrapped, device_ids=[device] if device.type == "cuda" else None, **KEEP_BUFFERS)

    def together(self, model: nn.Module, synchronise: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and backward pass: whether gradients are averaged at its end."""
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(synchronise)
        if isinstance(model, DistributedDataParallel) and not synchronise:
            return model.no_sync()
        return contextlib.nullcontext()

    def whole(self, model: nn.Module, everywhere: bool = False) -> nn.Module:
        """The model with all of its weights, which nothing else holds; every process must call this.

        Args:
            model: that was shared.
            everywhere: give it to every process, and not to the first alone, the others what they have.
        """
        if self._blank is None:
            return model
        tensors: dict[Tensor, Tensor] = {}
        for parameter, empty in zip(model.parameters(), self._blank.parameters()):
            tensor = whole(parameter.detach())  # one after the other: of those that are not kept, one at a time
            if self.first or everywhere:
                tensors[empty] = tensor
        if not tensors:
            return model
        buffers = dict(model.named_buffers())
        return _with(self._blank, {**tensors, **{old: buffers[name] for name, old in self._blank.named_buffers()}})

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, one after the other, with gradients to those of each.

        Args:
            rows: (n, D) of this process; those beyond its count are left out.
            counts: how many rows each process gives.

        Returns:
            (sum of counts, D). A loss computed from it in every process, the same in each, gives rows as many times
            their gradient as there are processes, which averaging over them makes right.
        """
        if self.count == 1:
            return rows
        most = max(counts)
        own = rows[:counts[self.rank]]
        padded = torch.cat([own, rows.new_zeros(most - len(own), *rows.shape[1:])])
        every = _Gathered.apply(padded, self.rank, self.count)  # (count, most, D)
        return torch.cat([part[:count] for part, count in zip(every, counts)])

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

    def first_then_all(self, first: Callable[[], T], others: Callable[[], T]) -> T:
        """What the first process gives, and after it the others theirs.

        Raises:
            InputError: what the first process raises; the others end with it.
        """
        value: T | None = None
        mistake: InputError | None = None
        if self.first:
            try:
                value = first()
            except InputError as error:
                mistake = error
        if self.any(mistake is not None):
            raise mistake or InputError(f"process {self.rank} ends with the first one, which says why")
        return others() if value is None else value


class _Gathered(torch.autograd.Function):
    """A tensor (n, D) of each process, stacked; backward sums the gradients that all processes have for each."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, count: int) -> Tensor:
        ctx.rank = rank
        every = [torch.empty_like(own) for _ in range(count)]
        dist.all_gather(every, own.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[ctx.rank], None, None


def _with(model: nn.Module, tensors: Mapping[Tensor, Tensor]) -> nn.Module:
    """A copy of a model with these in the place of some of its parameters and buffers, whoever shares them."""
    memo: dict[int, Any] = {id(old): nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                            for old, new in tensors.items()}
    for module in model.modules():  # it never changes, and copying it takes long
        if (tokenizer := getattr(module, "tokenizer", None)) is not None:
            memo[id(tokenizer)] = tokenizer
    return copy.deepcopy(model, memo)


ALONE = Processes()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that processes have parts of (every process must call this); others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The part of a whole tensor that this process keeps, where it keeps a part of `other`; no process waits."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    mesh, rank = other.device_mesh, other.device_mesh.get_local_rank()
    rows = tensor.chunk(mesh.size())  # as FSDP2 cuts: along the first axis
    own = rows[rank] if rank < len(rows) else tensor[:0]
    return DTensor.from_local(own.to(other.device), mesh, other.placements, run_check=False, shape=tensor.shape,
                              stride=tensor.stride())


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextlib.contextmanager
def processes(device: torch.device, shard: bool = False) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that `torchrun` started, this one among them; without it, one alone.

    Args:
        device: where this process computes; of several GPUs each takes its own.
        shard: see `Processes`.

    Yields:
        ``(processes, device)``.

    Raises:
        InputError: they cannot find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if shard:
            raise InputError("--shard: there is one process; start several with torchrun")
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torchrun's processes do not find each other ({error})") from None
    try:
        with warnings.catch_warnings():  # of gradients of tokens that every picture has, at no cost
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield Processes(dist.get_rank(), dist.get_world_size(), shard), device
            dist.barrier()  # nobody leaves while others still talk to it
    finally:
        dist.destroy_process_group()
