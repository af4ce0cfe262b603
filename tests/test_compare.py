"""Paired tests of two scores: against exact counts and simulation, and what cannot be compared."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from minivl.errors import InputError
from minivl.metrics.bleu import bleu
from minivl.metrics.cider import cider
from minivl.metrics.compare import _sign_flips, compare
from minivl.metrics.score import Score, same_signature


def score(values: Any, signature: str = "cider-d|v1", ids: Any = None) -> Score:
    values = [float(value) for value in values]
    return Score(sum(values) / len(values), dict(zip(ids or range(len(values)), values)), signature)


def pair(seed: int, images: int, better: float, noise: float = 1.0) -> tuple[Score, Score]:
    """Two captioners on the same images, which differ in how hard they are."""
    draw = np.random.default_rng(seed)
    hard = draw.gamma(2.0, 1.0, images) * 5
    return score(hard + better + noise * draw.normal(size=images)), score(hard + noise * draw.normal(size=images))


def test_a_real_difference_and_none() -> None:
    a, b = pair(1, 400, better=0.5)
    found = compare(a, b)
    assert found.difference == pytest.approx(a.score - b.score) and found.images == found.differing == 400
    assert 0 < found.interval[0] < found.difference < found.interval[1] < 1 and found.p < 0.001
    a, b = pair(2, 400, better=0.0)
    found = compare(a, b)
    assert found.interval[0] < 0 < found.interval[1] and found.p > 0.05


def test_pairing_cancels_what_is_hard_for_both() -> None:
    """The interval is that of the differences, far narrower than of either score."""
    a, b = pair(3, 500, better=0.3, noise=0.5)
    difference = np.subtract(list(a.per_item.values()), list(b.per_item.values()))
    low, high = compare(a, b).interval
    width = 2 * 1.96 * difference.std() / np.sqrt(500)
    assert high - low == pytest.approx(width, rel=0.1) and width < 0.3 * np.std(list(a.per_item.values()))


def test_both_ways_round() -> None:
    a, b = pair(4, 60, better=0.3)
    one, other = compare(a, b, seed=5), compare(b, a, seed=5)
    assert one.difference == -other.difference and one.p == other.p
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


def test_equal_for_equal_seeds() -> None:
    a, b = pair(6, 50, better=0.2)
    assert compare(a, b, seed=1) == compare(a, b, seed=1) != compare(a, b, seed=2)
    shuffled = Score(b.score, dict(reversed(b.per_item.items())), b.signature)
    assert compare(a, shuffled, seed=1) == compare(a, b, seed=1)


def test_the_same_captions() -> None:
    a, _ = pair(7, 30, better=0.0)
    found = compare(a, a)
    assert (found.difference, found.interval, found.p, found.differing) == (0.0, (0.0, 0.0), 1.0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_p_is_the_exact_one(seed: int) -> None:
    """All 2^9 ways to swap, with ties."""
    values = np.random.default_rng(seed).integers(-3, 6, 9) / 10
    values = values[values != 0]
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=len(values))]
    exact = np.mean(np.array(sums) >= abs(values.sum()) - 1e-9)
    assert _sign_flips(values, 40_000, seed) == pytest.approx(exact, abs=0.012)


def test_p_is_uniform_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivl.metrics.compare.TOGETHER", 999)  # in many parts
    draw = np.random.default_rng(8)
    found = np.array([_sign_flips(draw.normal(size=25), 300, seed) for seed in range(400)])
    assert abs(np.mean(found < 0.05) - 0.05) < 0.035 and abs(np.mean(found < 0.5) - 0.5) < 0.08
    assert found.min() >= 1 / 301


def test_signature_says_how() -> None:
    a, b = pair(9, 20, better=0.0)
    assert compare(a, b, samples=100, seed=3).signature == "paired|boot100|flips100|seed3|images20|v1 of cider-d|v1"


def test_real_scores() -> None:
    references = {image: [f"a {colour} dog runs in the snow", "the dog plays outside"]
                  for image, colour in enumerate(["red", "black", "white", "brown", "big", "small", "old", "young"])}
    right = cider({image: told[0] for image, told in references.items()}, references)
    wrong = cider({image: references[(image + 1) % 8][0] for image in references}, references)
    found = compare(right, wrong)
    assert found.difference > 0 and found.interval[0] > 0 and found.p < 0.02
    other = cider({image: told[0] for image, told in references.items()}, references, n=3)
    with pytest.raises(InputError, match=r"cannot be compared: cider-d\|n4\S* and cider-d\|n3\S*"):
        compare(right, other)


def test_same_signature() -> None:
    one, other = score([1, 2], "a|v1"), score([1, 2], "b|v1")
    assert same_signature(one, one) == "a|v1"
    with pytest.raises(InputError, match=r"different signatures cannot be compared: a\|v1 and b\|v1"):
        same_signature(one, other)


@pytest.mark.parametrize("a, b, words", [
    (score([1, 2], "a|v1"), score([1, 2], "b|v1"), r"a\|v1 and b\|v1"),
    (score([1, 2], ids=["x", "y"]), score([1, 2], ids=["x", "z"]), "2 are only on one side: 'y', 'z'"),
    (score([1, 2, 3]), score([1, 2]), "1 are only on one side: 2"),
    (score([1]), score([2]), "of 1 image nothing can be said"),
    (score([1, float("nan")]), score([1, 2]), "1 images have scores that are not finite: 1"),
    (score([1, 2]), score([1, float("inf")]), "not finite: 1"),
    (Score(0.0, {1: -1.0, 2: 0.4}, "cider-d|v1"), score([1, 2], ids=[1, 2]), "the score 0.0 is not the mean"),
    (score([1, 2], "bleu|n4"), score([1, 2], "bleu|n4"), "BLEU of a set is no mean of its images'"),
    (0.94, 0.95, "a float cannot be compared here, a Score is needed"),
])
def test_refused(a: Any, b: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(a, b)


def test_bleu_is_refused() -> None:
    result = bleu({1: "a dog", 2: "a cat"}, {1: ["a dog"], 2: ["the cat"]})
    with pytest.raises(InputError, match="BLEU of a set is no mean"):
        compare(result, result)  # type: ignore[arg-type]


@pytest.mark.parametrize("options, words", [
    ({"samples": 0}, "samples=0"), ({"samples": 2.5}, "samples=2.5"), ({"samples": True}, "samples=True"),
    ({"seed": -1}, "seed=-1"), ({"seed": "x"}, "seed='x'")])
def test_draws_are_whole_numbers(options: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare(score([1, 2]), score([1, 2]), **options)
