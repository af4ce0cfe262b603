"""Scores of classifiers: by hand, against numpy and torch, and what the interval covers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from minivl.errors import InputError
from minivl.metrics import classification
from minivl.metrics.classification import (Confusion, accuracy, bootstrap_interval, confusion_pairs, mean_per_class,
                                           top_k)

LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 4]
GUESSES = [0, 1, 1, 1, 0, 2, 2, 4, 4, 4]
NAMES = ["cat", "dog", "bird", "never", "fish"]


def drawn(rows: int = 40, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator), torch.randint(0, classes, (rows,), generator=generator)


# -- top-k ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("k", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_top_k_is_that_of_torch(k: int, kind: torch.dtype) -> None:
    logits, labels = drawn()
    # by equal steps, so that no two are equal in bfloat16
    logits = logits.argsort(1).argsort(1).to(kind) - 3
    expected = (logits.topk(k, 1).indices == labels[:, None]).any(1)
    found = top_k(logits, labels, k)
    assert found.dtype == torch.bool and torch.equal(found, expected)
    assert (0 < found.float().mean() < 1) == (k < 7)


def test_top_k_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.9, 0.5], [2.0, -1.0, 3.0], [-math.inf, -5.0, -4.0]])
    assert top_k(logits, torch.tensor([2, 0, 0]), 1).tolist() == [False, False, False]
    assert top_k(logits, torch.tensor([2, 0, 0]), 2).tolist() == [True, True, False]
    assert top_k(logits, torch.tensor([1, 2, 2]), 1).tolist() == [True, True, True]
    assert top_k(logits, torch.tensor([2, 1, 0]), 50).all()


def test_of_equal_logits_the_first_is_chosen_as_by_argmax() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0]]).repeat_interleave(4, 0)
    labels = torch.arange(4).repeat(2)
    assert torch.equal(top_k(logits, labels, 1), logits.argmax(1) == labels)
    assert top_k(logits, labels, 1).sum() == 2
    assert top_k(logits, labels, 2).tolist() == [True, True, False, False, False, True, True, False]
    assert top_k(torch.zeros(5, 5), torch.arange(5), 3).sum() == 3


# -- shares --------------------------------------------------------------------------------------------------

def test_by_hand() -> None:
    assert accuracy(GUESSES, LABELS) == 5 / 10
    # cat 1 of 3, dog 1 of 2, bird 2 of 4, fish 1 of 1; of "never" there is none
    assert mean_per_class(GUESSES, LABELS, 5) == pytest.approx((1 / 3 + 1 / 2 + 2 / 4 + 1) / 4)
    assert confusion_pairs(GUESSES, LABELS, NAMES) == [
        ("cat", "dog", 2), ("bird", "fish", 2), ("dog", "cat", 1)]
    assert confusion_pairs(GUESSES, LABELS, NAMES, 1) == [Confusion("cat", "dog", 2)]
    assert confusion_pairs(LABELS, LABELS, NAMES) == []


def test_against_numpy() -> None:
    logits, labels = drawn(300, 12, 3)
    logits[torch.arange(300), labels] += 2
    predicted = logits.argmax(1)
    wrong = np.zeros((12, 12), dtype=int)
    np.add.at(wrong, (labels.numpy(), predicted.numpy()), 1)
    assert accuracy(predicted, labels) == pytest.approx(np.trace(wrong) / 300)
    assert mean_per_class(predicted, labels, 12) == pytest.approx((np.diag(wrong) / wrong.sum(1)).mean())
    assert mean_per_class(predicted, labels, 12) != pytest.approx(accuracy(predicted, labels), abs=1e-4)
    pairs = confusion_pairs(predicted.numpy(), labels.tolist(), [str(number) for number in range(12)], 1000)
    np.fill_diagonal(wrong, 0)
    assert {(int(true), int(guess)): count for true, guess, count in pairs} == {
        (row, column): wrong[row, column] for row, column in zip(*wrong.nonzero())}
    assert [pair.photos for pair in pairs] == sorted((pair.photos for pair in pairs), reverse=True)


# -- interval ------------------------------------------------------------------------------------------------

def test_interval_is_that_of_binomial_draws() -> None:
    """Of images that are right or wrong, a draw with replacement has a binomial number of right ones."""
    correct = torch.arange(200) < 150
    low, high = bootstrap_interval(correct[torch.randperm(200, generator=torch.Generator().manual_seed(0))])
    counts = np.arange(201)
    chances = np.array([math.comb(200, int(n)) * 0.75 ** int(n) * 0.25 ** int(200 - n) for n in counts])
    expected = [counts[np.searchsorted(chances.cumsum(), level)] / 200 for level in (0.025, 0.975)]
    assert (low, high) == pytest.approx(expected, abs=0.0051)  # one image
    assert bootstrap_interval(correct, level=0.5) > (low, 0) and bootstrap_interval(correct, level=0.5)[1] < high


def test_interval_repeats_and_knows_its_limits() -> None:
    correct = np.random.default_rng(0).random(31) < 0.7
    assert bootstrap_interval(correct, draws=50) == bootstrap_interval(torch.from_numpy(correct), draws=50)
    assert bootstrap_interval(correct, draws=50) != bootstrap_interval(correct, draws=50, seed=1)
    assert bootstrap_interval([True] * 9, draws=20) == (1, 1) and bootstrap_interval([True]) == (0, 1)


def test_interval_covers_the_truth() -> None:
    """About 95 in 100 intervals of 120 images hold the true share."""
    random = np.random.default_rng(5)
    intervals = [bootstrap_interval(random.random(120) < 0.8, draws=300, seed=seed) for seed in range(100)]
    assert 88 <= sum(low <= 0.8 <= high for low, high in intervals) <= 100


# -- mistakes ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, arguments, told", [
    ("top_k", (torch.zeros(2, 3), torch.tensor([0, 3]), 1), "labels from 0 to 3: there are 3 classes, 0 to 2"),
    ("top_k", (torch.zeros(2, 3), torch.tensor([-1, 0]), 1), "labels from -1 to 0"),
    ("top_k", (torch.zeros(2, 3), torch.tensor([0]), 1), "1 labels for 2 rows"),
    ("top_k", (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), 1), "labels are torch.float32 of shape (2,)"),
    ("top_k", (torch.zeros(3), torch.tensor([0]), 1), "of shape (3,)"),
    ("top_k", (torch.zeros(1, 3).long(), torch.tensor([0]), 1), "logits are torch.int64"),
    ("top_k", (torch.zeros(1, 3), torch.tensor([0]), 0), "k=0"),
    ("top_k", (torch.tensor([[0, math.nan]]), torch.tensor([0]), 1), "nan"),
    ("accuracy", ([], []), "0 predictions and 0 labels"),
    ("accuracy", ([1, 2], [1]), "2 predictions and 1 labels"),
    ("accuracy", ([True], [1]), "predictions are torch.bool"),
    ("mean_per_class", ([1, 2], [1, 1], 2), "predictions from 1 to 2: there are 2 classes"),
    ("mean_per_class", ([1], [5], 2), "labels from 5 to 5"),
    ("confusion_pairs", ([1], [2], ["a", "b"]), "labels from 2 to 2"),
    ("bootstrap_interval", ([],), "at least one boolean"),
    ("bootstrap_interval", ([0, 1],), "correct is int64 of shape (2,)"),
    ("bootstrap_interval", (torch.ones(2, 2).bool(),), "of shape (2, 2)")])
def test_refused(name: str, arguments: tuple[Any, ...], told: str) -> None:
    with pytest.raises(InputError) as raised:
        getattr(classification, name)(*arguments)
    assert told in str(raised.value)


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"draws": 0}])
def test_intervals_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="level=.* draws="):
        bootstrap_interval([True, False], **options)
