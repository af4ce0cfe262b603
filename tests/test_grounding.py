"""The pointing game: planted hits, chance by simulation, and what the interval covers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from minivl.errors import InputError
from minivl.metrics.grounding import Pointing, chance, difference, point, pointing_score


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def planted(hits: dict[Any, list[bool]]) -> dict[Any, list[Any]]:
    """Looks with the given outcome per noun."""
    mask = box(5, 9, 1, 6, 3, 8)
    return {id: [((2.5, 7.0), mask) if hit else ((2.0, 3.0), mask) for hit in nouns]
            for id, nouns in hits.items()}


def drawn(seed: int, items: int, skill: float, most: int = 4) -> dict[Any, list[bool]]:
    """Outcomes where the nouns of one item go together."""
    rng = np.random.default_rng(seed)
    return {f"i{index}": [bool(rng.random() < easy)] * int(rng.integers(0, most + 1))
            for index, easy in enumerate(np.clip(rng.normal(skill, 0.2, items), 0, 1))}


@pytest.mark.parametrize("peak, inside", [
    ((1, 6), True), ((1.0, 6.0), True), ((2.999, 7.999), True), ((0.999, 6.5), False), ((3.0, 6.5), False),
    ((2, 8), False), ((2, 5.999), False), ((0, 0), False), ((4.99, 8.99), False),
    ((np.int64(2), np.float32(7.5)), True),
])
def test_point(peak: tuple[float, float], inside: bool) -> None:
    mask = box(5, 9, 1, 6, 3, 8)
    assert point(peak, mask) is inside
    assert point(peak, torch.from_numpy(mask)) is inside  # type: ignore[arg-type]
    assert point(peak, None) is False


def test_point_is_y_then_x_for_every_pixel() -> None:
    mask = np.random.default_rng(0).random((6, 11)) < 0.4
    got = [[point((y, x), mask) for x in range(11)] for y in range(6)]
    assert np.array_equal(np.array(got), mask)
    centres = [[point((y + 0.5, x + 0.5), mask) for x in range(11)] for y in range(6)]
    assert np.array_equal(np.array(centres), mask)


@pytest.mark.parametrize("peak, mask, words", [
    ((5.0, 2.0), box(5, 9, 0, 0, 1, 1), r"outside the mask of 5 x 9 \(height x width\)"),
    ((2.0, 9.0), box(5, 9, 0, 0, 1, 1), "outside the mask"),
    ((-0.1, 2.0), box(5, 9, 0, 0, 1, 1), "no .y, x. of a pixel"),
    ((math.nan, 2.0), None, "no .y, x. of a pixel"),
    ((1.0, 2.0, 3.0), None, "no .y, x. of a pixel"),
    ((1.0, 2.0), np.ones((5, 9)), "float64 of shape .5, 9., a boolean"),
    ((1.0, 2.0), np.ones((1, 5, 9), dtype=bool), "a boolean .H, W."),
])
def test_point_refuses(peak: Any, mask: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        point(peak, mask)
    with pytest.raises(InputError, match=r"noun 1 of 'photo'.*" + words):
        pointing_score({"photo": [((0, 0), None), (peak, mask)]})


def test_score_is_over_nouns() -> None:
    mask = box(4, 4, 0, 0, 2, 4)
    looks = {"a": [((0, 3), mask), ((3, 0), mask), ((1, 1), mask)], "b": [((1, 1), None)], "c": [],
             "d": [((1.5, 0), mask)]}
    result = pointing_score(looks)
    assert (result.hits, result.nouns, result.score) == (3, 5, 3 / 5)
    assert result.per_item == {"a": (2, 3), "b": (0, 1), "c": (0, 0), "d": (1, 1)}
    assert result.signature == "pointing|items4|nouns5|boot2000|seed0|v1"
    assert 0 <= result.interval[0] <= 3 / 5 <= result.interval[1] <= 1


def test_no_nouns() -> None:
    for looks in ({}, {"a": []}, {"a": [], "b": []}):
        for metric in (pointing_score, chance):
            with pytest.raises(InputError, match=f"no nouns in the {len(looks)} items"):
                metric(looks)  # type: ignore[operator]
    with pytest.raises(InputError, match="noun 0 of 'a' is no"):
        pointing_score({"a": [(3.0, None)]})  # type: ignore[list-item]
    with pytest.raises(InputError, match="samples=0"):
        pointing_score(planted({"a": [True], "b": [False]}), samples=0)


def test_chance_is_the_score_of_random_peaks() -> None:
    rng = np.random.default_rng(1)
    looks = {index: [((0, 0), None if rng.random() < 0.3 else rng.random((7, 5)) < rng.random() * 0.3)
                     for _ in range(index % 4)] for index in range(12)}
    nouns = [mask for looks_of in looks.values() for _, mask in looks_of]
    hits = [point((rng.random() * 7, rng.random() * 5), mask) for _ in range(400) for mask in nouns]
    assert any(mask is None for mask in nouns)
    assert chance(looks) == pytest.approx(float(np.mean(hits)), abs=0.02)
    assert chance({1: [((0, 0), box(4, 6, 0, 0, 2, 3)), ((9, 9), None)], 2: []}) == pytest.approx(6 / 24 / 2)


def test_interval_resamples_items() -> None:
    """Copies of a noun within an item add nothing; the same nouns in items of their own do."""
    outcomes = drawn(2, items=60, skill=0.6)
    once = pointing_score(planted(outcomes))
    many = pointing_score(planted({id: nouns * 25 for id, nouns in outcomes.items()}))
    assert many.interval == pytest.approx(once.interval) and many.score == pytest.approx(once.score)
    apart = {(id, place): [hit] for id, nouns in outcomes.items() for place, hit in enumerate(nouns * 25)}
    alone = pointing_score(planted(apart))
    assert alone.score == pytest.approx(once.score)
    assert alone.interval[1] - alone.interval[0] < 0.4 * (once.interval[1] - once.interval[0])


def test_interval_has_the_width_theory_gives() -> None:
    """One noun per item: a share of n coin throws."""
    rng = np.random.default_rng(3)
    result = pointing_score(planted({index: [bool(rng.random() < 0.3)] for index in range(400)}))
    half = 1.96 * math.sqrt(result.score * (1 - result.score) / 400)
    assert result.interval == pytest.approx((result.score - half, result.score + half), abs=0.006)


def test_interval_covers_the_truth() -> None:
    """About 95 in 100 intervals of small sets hold the score of a very large one."""
    truth = pointing_score(planted(drawn(99, items=20000, skill=0.4)), samples=1).score
    intervals = [pointing_score(planted(drawn(seed, items=50, skill=0.4)), samples=200).interval
                 for seed in range(100)]
    assert 86 <= sum(low <= truth <= high for low, high in intervals) <= 100


def test_draws_follow_the_seed() -> None:
    looks = planted(drawn(4, items=30, skill=0.5))
    assert pointing_score(looks) == pointing_score(looks)
    other = pointing_score(looks, seed=1)
    assert other.interval != pointing_score(looks).interval and other.signature.endswith("|seed1|v1")
    assert pointing_score(looks, samples=50).signature != other.signature


def test_too_few_items_say_nothing() -> None:
    single = pointing_score(planted({"a": [True, True, False], "b": []}))
    assert single.score == 2 / 3 and single.interval == (0.0, 1.0)
    mean, interval = difference(single, pointing_score(planted({"a": [False], "b": []})))
    assert mean == 2 / 3 and interval == (-1.0, 1.0)


def test_draws_without_nouns_are_left_out() -> None:
    outcomes: dict[Any, list[bool]] = {index: [] for index in range(20)}
    outcomes.update({"x": [True], "y": [False]})  # most draws of 22 items hold neither or one of them
    result = pointing_score(planted(outcomes))
    assert result.interval == (0.0, 1.0) and not math.isnan(sum(result.interval))
    _, (low, high) = difference(result, pointing_score(planted({**outcomes, "x": [False], "y": [True]})))
    assert -1 <= low <= high <= 1


def test_difference_is_paired() -> None:
    """Where one hits whatever the other hits and a little more, items cancel."""
    weak = drawn(5, items=120, skill=0.5)
    rng = np.random.default_rng(6)
    strong = {id: [hit or bool(rng.random() < 0.12) for hit in nouns] for id, nouns in weak.items()}
    a, b = pointing_score(planted(strong)), pointing_score(planted(weak))
    mean, (low, high) = difference(a, b)
    assert mean == pytest.approx(a.score - b.score) and 0 < low < mean < high
    assert high - low < 0.6 * (a.interval[1] - a.interval[0])
    assert a.interval[0] < b.interval[1]  # the two intervals alone would not tell them apart
    back, (low_back, high_back) = difference(b, a)
    assert (back, low_back, high_back) == pytest.approx((-mean, -high, -low))
    assert difference(a, a) == (0.0, (0.0, 0.0))


def test_difference_pairs_by_id_not_by_order() -> None:
    a = pointing_score(planted(drawn(7, items=40, skill=0.7)))
    b = pointing_score(planted(drawn(8, items=40, skill=0.3)))
    turned = Pointing(b.score, b.interval, b.hits, b.nouns, dict(reversed(b.per_item.items())), b.signature)
    assert difference(a, turned) == difference(a, b)
    assert difference(a, b, seed=3) != difference(a, b)


def test_difference_refuses_other_items() -> None:
    a = pointing_score(planted({"a": [True], "b": [False], "c": [True]}))
    b = pointing_score(planted({"a": [True], "b": [False], "d": [True]}))
    with pytest.raises(InputError, match="different items; only on one side: 'c', 'd'"):
        difference(a, b)
