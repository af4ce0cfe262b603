"""The order of an epoch: a permutation, the same wherever one begins, shared without overlap."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from minivl.data import order as order_module
from minivl.data.order import Batches, Order, cuts
from minivl.errors import InputError

WAYS = [{"seed": 3}, {"seed": None}, {"seed": 3, "window": 20}, {"seed": 3, "window": 300}, {"seed": 3, "window": 5000}]


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 100, 1023, 1024, 1025, 3001])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_sample_once_and_any_part_by_itself(count: int, way: dict[str, int]) -> None:
    order = Order(count, **way)
    for epoch in (0, 5):
        whole = order.samples(epoch, 0, count)
        assert whole.dtype == np.int64 and sorted(whole) == list(range(count))
        draw = np.random.default_rng(count)
        for _ in range(3):
            first, last = sorted(draw.integers(0, count + 1, 2))
            assert (Order(count, **way).samples(epoch, first, last) == whole[first:last]).all()


def test_order_is_of_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int, window: int | None = None) -> tuple[int, ...]:
        return tuple(Order(500, seed=seed, window=window).samples(epoch, 0, 500))

    for window in (None, 40):
        assert drawn(1, 2, window) == drawn(1, 2, window)
        assert len({drawn(seed, epoch, window) for seed in range(4) for epoch in range(4)}) == 16
    assert (Order(500, seed=None).samples(7, 0, 500) == np.arange(500)).all()


@pytest.mark.parametrize("count", [3, 4])
def test_all_orders_of_a_handful_are_equally_likely(count: int) -> None:
    """Chi-square, five standard deviations."""
    draws, kinds = 1200, math.factorial(count)
    found = Counter(tuple(Order(count, seed=seed).samples(0, 0, count)) for seed in range(draws))
    expected = draws / kinds
    statistic = sum((seen - expected) ** 2 / expected for seen in found.values()) + (kinds - len(found)) * expected
    assert statistic < kinds - 1 + 5 * math.sqrt(2 * (kinds - 1))


def test_a_long_order_looks_random() -> None:
    """Places are not correlated, neighbours are not kept, and half of what is early comes from the first half."""
    count = 100_003
    whole = Order(count, seed=9).samples(1, 0, count)
    assert abs(np.corrcoef(np.arange(count), whole)[0, 1]) < 5 / math.sqrt(count)
    assert (np.abs(np.diff(whole)) == 1).sum() < 15  # 2 are expected
    for start in range(0, 100_000, 10_000):
        assert abs((whole[start:start + 10_000] < count / 2).mean() - 0.5) < 5 * 0.5 / math.sqrt(10_000)


def test_a_window_is_a_few_runs_of_neighbours() -> None:
    count, window = 10_007, 800
    order = Order(count, seed=2, window=window)
    whole = order.samples(3, 0, count)
    starts = []
    for first in range(0, count, window):
        ordered = np.sort(whole[first:first + window])
        runs = 1 + (np.diff(ordered) != 1).sum()
        assert runs <= 16 + 2  # the last run of the set is short, and one may go round its end
        starts.append(ordered[0])
        inside = whole[first:first + window]
        assert (np.diff(inside) == 1).mean() < 0.05  # shuffled within
    assert starts != sorted(starts)
    other = order.samples(4, 0, count)
    runs_of = [set(np.sort(one[:window])) for one in (whole, other)]
    assert len(runs_of[0] & runs_of[1]) < window / 2  # other runs come together in another epoch


@pytest.mark.parametrize("ranks, unit", [(1, 1), (2, 1), (3, 1), (2, 2), (7, 2)])
def test_processes_share_batches_without_overlap(ranks: int, unit: int) -> None:
    order = Order(103, seed=4)
    shares = [list(Batches(order, 10, 6, rank=rank, ranks=ranks, unit=unit)) for rank in range(ranks)]
    counted = [sample for share in shares for one in share for sample in one.samples[:one.counted]]
    assert sorted(counted) == list(range(103))
    whole = order.samples(6, 0, 103).tolist()
    for step, batch in enumerate(zip(*shares, strict=True)):
        together = [sample for one in batch for sample in one.samples[:one.counted]]
        assert together == whole[step * 10:(step + 1) * 10]  # the very batch of one process
        assert {(one.epoch, one.step, one.whole) for one in batch} == {(6, step, len(together))}
        for one in batch:  # a process without a share still has something to compute
            assert one.counted == len(one.samples) or (one.counted, len(one.samples)) == (0, 1)
            assert one.samples[0] in together


@pytest.mark.parametrize("ahead", [1, 25, 8192])
def test_beginning_in_the_middle(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is computed together."""
    whole = list(Batches(Order(103, seed=4, window=30), 10, 1, ranks=2, rank=1))
    monkeypatch.setattr(order_module, "AHEAD", ahead)
    for start in (0, 1, 5, 10, 11):
        rest = Batches(Order(103, seed=4, window=30), 10, 1, start, ranks=2, rank=1)
        assert list(rest) == whole[start:] and len(rest) == len(whole) - start and rest.steps == 11
        assert list(rest) == whole[start:]  # and again


def test_cuts() -> None:
    assert cuts(10, 3) == [(0, 3), (3, 6), (6, 10)] and cuts(2, 3) == [(0, 0), (0, 1), (1, 2)]
    assert cuts(7, 2, 2) == [(0, 4), (4, 7)]


def test_numbers_out_of_range() -> None:
    for wrong in ({"count": 0}, {"count": 5, "window": 0}, {"count": 5, "window": 3, "seed": None}):
        with pytest.raises(InputError, match="count=0|window="):
            Order(**wrong)
    order = Order(20)
    for first, last in ((-1, 3), (3, 2), (0, 21)):
        with pytest.raises(InputError, match="an epoch has 20"):
            order.samples(0, first, last)
    for options in ({"rank": 2, "ranks": 2}, {"rank": -1}, {"unit": 0}, {"ranks": 0}):
        with pytest.raises(InputError, match="a rank below"):
            Batches(order, 5, 0, **options)
    with pytest.raises(InputError, match="batch_size=0"):
        Batches(order, 0, 0)
    with pytest.raises(InputError, match="start=5: an epoch has 4 batches"):
        Batches(order, 5, 0, 5)
