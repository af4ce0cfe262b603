"""The order of an epoch, computed place by place: nothing is kept per sample, and any batch can be asked for first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .augment import mixed

ROUNDS = 24  # of the Feistel network; with fewer, the orders of a handful of samples are not equally likely
AHEAD = 8192  # places computed together
BLOCKS = 16  # runs of neighbours that a window is filled with


class Order:
    """The order in which an epoch shows samples, a function of (seed, epoch) alone.

    A permutation of range(count) by a Feistel network (Luby and Rackoff 1988) over the numbers of as many bits; what
    lands beyond count is sent through it again until it lands inside (cycle walking, Black and Rogaway 2002).

    Args:
        count: of samples.
        seed: of the order; None = as they lie, in every epoch.
        window: for disks that are slow to seek: an epoch is cut into windows of about so many samples, each filled
            with 16 runs of neighbours from anywhere in the set and shuffled within. Where runs begin is drawn for
            each epoch. None = every sample may come anywhere.

    Raises:
        InputError: count or window below 1, or a window without a seed.
    """

    def __init__(self, count: int, *, seed: int | None = 0, window: int | None = None) -> None:
        if count < 1:
            raise InputError(f"count={count}: an order needs at least one sample")
        if window is not None and window < 1:
            raise InputError(f"window={window}: give 1 or more, or None")
        if window is not None and seed is None:
            raise InputError(f"window={window} without a seed: samples in the order they lie in are in no window")
        self._count, self._seed = count, seed
        self._block = 0 if window is None else -(-window // BLOCKS)

    def __len__(self) -> int:
        return self._count

    def samples(self, epoch: int, first: int, last: int) -> np.ndarray:
        """(last - first,) int64: which samples stand at places first to last - 1 of an epoch.

        Raises:
            InputError: places beyond the epoch.
        """
        if not 0 <= first <= last <= self._count:
            raise InputError(f"places {first} to {last}: an epoch has {self._count}")
        places = np.arange(first, last, dtype=np.uint64)
        if self._seed is None or not len(places):
            return places.astype(np.int64)
        if not self._block:
            return _permuted(places, self._count, mixed(self._seed, "order", epoch)).astype(np.int64)
        return self._windowed(places, epoch).astype(np.int64)

    def _windowed(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Places shuffled within their window, then windows filled with runs from anywhere."""
        assert self._seed is not None
        block, window, count = self._block, self._block * BLOCKS, self._count
        inside = []
        for start in range(int(places[0]) // window * window, int(places[-1]) + 1, window):
            own = places[(places >= start) & (places < start + window)] - np.uint64(start)
            key = mixed(self._seed, "window", epoch, start // window)
            inside.append(_permuted(own, min(window, count - start), key) + np.uint64(start))
        places = np.concatenate(inside)
        runs, within = places // np.uint64(block), places % np.uint64(block)
        whole = count // block  # the run that is left over is shorter and stays the last
        moved = runs < whole
        runs[moved] = _permuted(runs[moved], whole, mixed(self._seed, "runs", epoch))
        turn = mixed(self._seed, "turn", epoch) % count  # so that neither it nor the cuts are always the same samples
        return (runs * np.uint64(block) + within + np.uint64(turn)) % np.uint64(count)


def _permuted(places: np.ndarray, count: int, key: int) -> np.ndarray:
    """Where a permutation of range(count), one for each key, sends these numbers; all are uint64."""
    bits = max(2, (count - 1).bit_length())
    low = np.uint64(bits // 2)
    masks = [np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << bits // 2) - 1)]
    keys = np.random.default_rng(key).integers(0, 2 ** 64, ROUNDS, dtype=np.uint64)
    found, wandering = places.copy(), np.arange(len(places))
    while len(wandering):
        values = found[wandering]
        halves = [values >> low, values & masks[1]]
        for number, round_key in enumerate(keys):
            changed = number % 2
            halves[changed] = halves[changed] ^ (_stirred(halves[1 - changed] ^ round_key) & masks[changed])
        found[wandering] = (halves[0] << low) | halves[1]
        wandering = wandering[found[wandering] >= count]
    return found


def _stirred(values: np.ndarray) -> np.ndarray:
    """Every bit of a uint64 spread over all of them (the finaliser of MurmurHash3)."""
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def cuts(length: int, shares: int, unit: int = 1) -> list[tuple[int, int]]:
    """(start, stop) of so many shares of rows, alike in size to one unit; only the last may end within a unit."""
    units = -(-length // unit)
    ends = [min(length, units * share // shares * unit) for share in range(shares + 1)]
    return list(zip(ends, ends[1:]))


class Share(NamedTuple):
    """What one process reads of a batch.

    Attributes:
        epoch: number of the epoch.
        step: number of the batch in it.
        samples: to be read.
        counted: how many of them are of the batch: all, or 0 where this process has no share of it and only
            computes one for the others' sake, who wait for its gradients.
        whole: samples of the whole batch, over all processes.
    """

    epoch: int
    step: int
    samples: list[int]
    counted: int
    whole: int


class Batches:
    """The batches of an epoch from one of them on, of each the share of this process; made one by one.

    All processes together have every sample of the epoch exactly once, however many processes and workers there are.

    Args:
        order: of the samples.
        batch_size: samples of a batch, over all processes; the last may have fewer.
        epoch: which.
        start: number of the first batch wanted; those before it are skipped at no cost.
        rank, ranks: this process, among how many.
        unit: shares are cut at multiples of it (2 where neighbours are mixed).

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, order: Order, batch_size: int, epoch: int, start: int = 0, *, rank: int = 0, ranks: int = 1,
                 unit: int = 1) -> None:
        if batch_size < 1 or unit < 1 or not 0 <= rank < ranks:
            raise InputError(f"batch_size={batch_size}, unit={unit}, rank={rank} of {ranks}: sizes of 1 or more are "
                             "needed, and a rank below the number of them")
        self._order, self._size, self._epoch, self._start = order, batch_size, epoch, start
        self._rank, self._ranks, self._unit = rank, ranks, unit
        self.steps = -(-len(order) // batch_size)  # of the whole epoch
        if not 0 <= start <= self.steps:
            raise InputError(f"start={start}: an epoch has {self.steps} batches")

    def __len__(self) -> int:
        return self.steps - self._start

    def __iter__(self) -> Iterator[Share]:
        together = max(1, AHEAD // self._size)
        for step in range(self._start, self.steps):
            if (step - self._start) % together == 0:
                end = min((step + together) * self._size, len(self._order))
                ahead = self._order.samples(self._epoch, step * self._size, end)
            whole, ahead = ahead[:self._size], ahead[self._size:]
            first, last = cuts(len(whole), self._ranks, self._unit)[self._rank]
            own = whole[first:last] if last > first else whole[:1]
            yield Share(self._epoch, step, own.tolist(), last - first, len(whole))
