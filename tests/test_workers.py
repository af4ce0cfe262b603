"""Worker processes: order, mistakes that are handed over, and workers that die."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from minivl.data.workers import _child_ended, _Deaths, fetched
from minivl.errors import InputError


def square(plan: int) -> torch.Tensor:
    time.sleep(0.001 * (plan % 3))  # so that workers are done out of order
    return torch.tensor([plan, plan ** 2, os.getpid()])


class Fails:
    """Raises at one plan."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, plan: int) -> int:
        if plan == 7:
            raise self.error
        return plan


class Dies:
    """Kills its process at one plan, or ends it, after some seconds."""

    def __init__(self, how: int, after: float = 0.0) -> None:
        self.how, self.after = how, after

    def __call__(self, plan: int) -> int:
        if plan == 7:
            time.sleep(self.after)
            if self.how:
                os.kill(os.getpid(), self.how)
            os._exit(3)
        return plan


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine of two cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_in_the_order_of_the_plans(workers: int) -> None:
    asked: list[int] = []

    def plans() -> Iterator[int]:
        for plan in range(30):
            asked.append(plan)
            yield plan

    brought = fetched(square, plans(), workers=workers)
    first = next(brought)
    assert len(asked) <= 1 + 3 * workers  # plans are asked for as they are needed
    rows = torch.stack([first, *brought])
    assert torch.equal(rows[:, 0], torch.arange(30)) and torch.equal(rows[:, 1], torch.arange(30) ** 2)
    assert len(rows[:, 2].unique()) == max(1, workers)
    assert (os.getpid() in rows[:, 2]) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error, told", [
    (InputError("is no picture", source="a.tar: 7.jpg"), r"^a.tar: 7.jpg: is no picture$"),
    (OSError(5, "Input/output error", "b.tar"), r"^\[Errno 5\] Input/output error: 'b.tar'$")])
def test_mistakes_come_in_their_place(workers: int, error: Exception, told: str) -> None:
    got = []
    with pytest.raises(InputError, match=told):
        for value in fetched(Fails(error), range(20), workers=workers):
            got.append(value)
    assert got == list(range(7))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_keeps_its_traceback(workers: int) -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        list(fetched(Fails(ZeroDivisionError("by zero")), range(20), workers=workers))


@pytest.mark.parametrize("how", [signal.SIGKILL, 0], ids=["killed", "ends"])
def test_a_worker_that_dies_is_an_error(how: int) -> None:
    before, got = len(_Deaths.used), []  # a loader that another test left behind may be in use
    with pytest.raises(InputError, match=r"has ended before its work did \(DataLoader worker.*fewer workers \(there "
                                         r"are 2\)$"):
        for value in fetched(Dies(how), range(40), workers=2):
            got.append(value)
    assert got == list(range(len(got))) and len(got) <= 7
    assert len(_Deaths.used) == before and (before or signal.getsignal(signal.SIGCHLD) is not _child_ended)


@pytest.mark.parametrize("how", [signal.SIGKILL, 0], ids=["killed", "ends"])
def test_it_is_raised_where_the_next_value_is_asked_for(how: int) -> None:
    """The death happens while the main thread is at something else, which goes on."""
    brought = fetched(Dies(how, 0.5), range(6, 40), workers=1)
    assert next(brought) == 6
    ended = time.monotonic() + 1.5
    while time.monotonic() < ended:
        time.sleep(0.01)
    with pytest.raises(InputError, match="has ended before its work did"):
        next(brought)


def test_in_another_thread() -> None:
    """Where there are no signals, loaders look after their workers themselves."""
    told: list[str] = []

    def read(fetch: Callable[[int], int]) -> None:
        try:
            told.append(str(list(fetched(fetch, range(40), workers=1))))
        except InputError as error:
            told.append(str(error))

    for fetch in (abs, Dies(signal.SIGKILL)):
        thread = threading.Thread(target=read, args=(fetch,))
        thread.start()
        thread.join(60)
    assert told[0] == str(list(range(40))) and "has ended before its work did" in told[1]


def test_the_generator_of_everybody_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(fetched(square, range(3), workers=1))
    assert torch.equal(torch.rand(3), expected)


def test_what_is_left_in_the_middle_ends_its_workers() -> None:
    brought = fetched(square, range(1000), workers=2)
    pids = {int(next(brought)[2]) for _ in range(6)}
    brought.close()  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_handler_goes_with_the_last_loader_in_whatever_order_they_end(order: tuple[int, int]) -> None:
    gc.collect()
    before, found = len(_Deaths.used), signal.getsignal(signal.SIGCHLD)
    some = [fetched(square, range(50), workers=1) for _ in range(2)]
    assert all(int(next(one)[0]) == 0 for one in some) and signal.getsignal(signal.SIGCHLD) is _child_ended
    for place in order:
        assert len(_Deaths.used) > before
        some[place].close()  # type: ignore[attr-defined]
    assert len(_Deaths.used) == before and (before or signal.getsignal(signal.SIGCHLD) is not _child_ended)
    assert before == 0 or found is _child_ended


def test_a_death_is_told_to_the_loader_that_waits() -> None:
    """Also where it was opened before another one that goes on."""
    first, second = fetched(Dies(signal.SIGKILL), range(40), workers=1), fetched(square, range(1000), workers=1)
    assert next(first) == 0 and int(next(second)[0]) == 0
    with pytest.raises(InputError, match="has ended before its work did"):
        list(first)
    second.close()  # type: ignore[attr-defined]
