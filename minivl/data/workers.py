"""Worker processes that read: their mistakes come out as ours, and their death is an error, not a wait for ever."""

from __future__ import annotations

import atexit
import functools
import multiprocessing.util
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError

P = TypeVar("P")
T = TypeVar("T")
DEATH = "DataLoader worker (pid"  # how torch begins to tell of one
END = object()


def fetched(fetch: Callable[[P], T], plans: Iterable[P], *, workers: int = 0, pin: bool = False) -> Iterator[T]:
    """What each plan brings, in their order; with workers, some plans ahead.

    Args:
        fetch: makes of a plan what is wanted. It runs in the workers, each of which has a copy of it.
        plans: asked for one by one.
        workers: processes that fetch; 0: this one.
        pin: put tensors into memory that GPUs copy from faster.

    Raises:
        InputError: what `fetch` raises (an OSError too), in place of what its plan would have brought; a worker that
            was killed or ended of itself.
    """
    # the loader draws seeds for its workers, which need none: not from the generator of everybody
    loader: DataLoader[Any] = DataLoader(_Careful(fetch), batch_size=None, sampler=cast(Any, plans),
                                         num_workers=workers, pin_memory=pin, generator=torch.Generator(),
                                         worker_init_fn=functools.partial(_calm, _several()))
    with _Deaths(_started(loader)) as brought:
        while True:
            value = brought.next()
            if value is END:
                return
            if isinstance(value, str):
                raise InputError(f"a process that reads pictures has ended before its work did ({value}): the machine "
                                 f"may be short of memory, try fewer workers (there are {workers})")
            if isinstance(value, InputError):
                raise value
            yield value[0]


class _Careful(Dataset[Any], Generic[P, T]):
    """Fetches by plan; errors are handed over, not raised: raised in a worker, they come out wrapped in a traceback."""

    def __init__(self, fetch: Callable[[P], T]) -> None:
        self._fetch = fetch

    def __getitem__(self, plan: P) -> tuple[T] | InputError:
        try:
            return self._fetch(plan),
        except InputError as error:
            return error
        except OSError as error:
            return InputError(str(error))


class _Deaths:
    """Lets the death of a worker be raised where the next value is asked for, and nowhere else.

    The handler of SIGCHLD that a DataLoader sets raises in whatever the main thread is doing: in the middle of an
    optimiser's step, say. It is wrapped while loaders are in use, in whatever order they end. Where there is no such
    handler (another thread, another system), loaders look after their workers every few seconds while they wait.
    """

    used: list[_Deaths] = []  # those in use
    before: Any = None  # the handler that is wrapped

    def __init__(self, brought: Iterator[Any]) -> None:
        self._brought, self._waits, self._told = brought, False, ""

    def __enter__(self) -> _Deaths:
        if _main_thread() and signal.getsignal(signal.SIGCHLD) is not _child_ended:
            before = signal.getsignal(signal.SIGCHLD)
            if callable(before):
                _Deaths.before = before
                signal.signal(signal.SIGCHLD, _child_ended)
        self.used.append(self)
        return self

    @classmethod
    def tell(cls, error: RuntimeError) -> None:
        """Keep the death of a worker for those who ask next, or raise it where one of them is waiting.

        Raises:
            RuntimeError: the same error.
        """
        if not str(error).startswith(DEATH) or any(one._waits for one in cls.used):
            raise error
        for one in cls.used:
            one._told = str(error)

    def next(self) -> Any:
        """The next value, `END` after the last; as text, how a worker has died."""
        self._waits = True
        try:
            return self._told or next(self._brought, END)
        except RuntimeError as error:
            if not str(error).startswith(DEATH):
                raise
            return " ".join(str(error).partition("\n")[0].split()).rstrip(". ")
        finally:
            self._waits = False

    def __exit__(self, *_: object) -> None:
        # The last reference: workers are ended now, and not when the garbage collector comes by an error that holds
        # this frame; it may close their queues first, and each then takes seconds to end.
        del self._brought
        self.used.remove(self)
        if not self.used and _main_thread() and signal.getsignal(signal.SIGCHLD) is _child_ended:
            signal.signal(signal.SIGCHLD, _Deaths.before)


def _several() -> bool:
    """Whether this process is one of several; torch may have been built without any."""
    return dist.is_available() and dist.is_initialized()


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its iterator, with its workers running."""
    others = multiprocessing.active_children()
    iterator = iter(loader)
    if _several():
        _calmed.update(worker for worker in multiprocessing.active_children() if worker not in others)
    return iterator


_calmed: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()  # workers that ignore SIGTERM


@atexit.register
def _end() -> None:
    """Kill the workers of this process, one of several, that are still there as it ends.

    Otherwise an error that nobody catches, which keeps its frames and with them the loader, is waited out for ever:
    multiprocessing, whose turn is later, sends workers SIGTERM and then waits for them.
    """
    for worker in _calmed:
        if worker.is_alive():
            worker.kill()


def _calm(several: bool, worker: int) -> None:
    """In a worker: its process ends it, and not Ctrl-C, which reaches both; among several processes, which finish the
    step that is under way, nor the SIGTERM that torchrun sends to all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if several:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _main_thread() -> bool:
    """Whether this may set a handler of SIGCHLD."""
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()


def _child_ended(number: int, frame: FrameType | None) -> None:
    try:
        _Deaths.before(number, frame)
    except RuntimeError as error:
        _Deaths.tell(error)
