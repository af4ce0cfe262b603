"""n-grams as numbers, against counting them in dictionaries."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby

import numpy as np
import pytest

from minivl.metrics import ngrams
from minivl.metrics.ngrams import Ngram, Ngrams, common, hold
from minivl.metrics.tokens import encode


def captions(seed: int, count: int, vocabulary: int = 9) -> list[list[str]]:
    draw = random.Random(seed)
    words = [f"w{number:x}" for number in range(vocabulary)]
    weights = [1 / (2 + rank) for rank in range(vocabulary)]
    return [draw.choices(words, weights, k=draw.choice([0, 1, 2, 5, 9, 14])) for _ in range(count)]


def counted(caption: list[str], order: int) -> Counter[Ngram]:
    return Counter(tuple(caption[place:place + order]) for place in range(len(caption) - order + 1))


@pytest.mark.parametrize("block", [1, 20, 1 << 16])
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_counts_by_image(n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "BLOCK", block)
    texts = captions(n, 60)
    root = np.sort(np.random.default_rng(1).integers(3, 20, len(texts)))  # roots may be skipped
    found, held = hold(encode([texts[:7], texts[7:]]), root, n)
    assert len(found.keys) == len(held) == n
    for order, who in enumerate(held, 1):
        expected = {(int(image), ngram, caption): times for image, group in groupby(range(len(texts)), root.__getitem__)
                    for caption in group for ngram, times in counted(texts[caption], order).items()}
        seen = {}
        for number, (begin, end) in enumerate(zip(who.start, who.start[1:])):
            ngram = found.spell(order, number)
            at = number
            for below in range(order, 0, -1):
                at = int(found.split(below)[0][at])
            assert found.find(ngram, root=at) == number and begin < end
            for entry in range(begin, end):
                seen[at, ngram, int(who.caption[entry])] = int(who.times[entry])
        assert seen == expected
        assert (np.diff(found.keys[order - 1]) > 0).all()


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    text, root = encode([captions(3, 80)]), np.repeat(np.arange(20), 4)
    whole, who = hold(text, root, 4)
    monkeypatch.setattr(ngrams, "BLOCK", 3)
    parts, whose = hold(text, root, 4)
    for one, other in zip([*whole.keys, *(array for held in who for array in held)],
                          [*parts.keys, *(array for held in whose for array in held)]):
        assert np.array_equal(one, other)


def test_not_there() -> None:
    found, _ = hold(encode([[["a", "dog", "runs"], ["a", "cat"]]]), np.arange(2), 2)
    assert found.find(["a", "dog"], root=0) >= 0 and found.find(["a", "cat"], root=1) >= 0
    for ngram, root in ((["a", "dog"], 1), (["cat"], 0), (["dog", "a"], 0), (["pig"], 0), (["a", "pig"], 0),
                        (["a", "dog", "runs"], 0), ([], 0), (["a"], 2)):
        assert found.find(ngram, root=root) == -1, ngram


@pytest.mark.parametrize("vocabulary", [4, 30])
def test_numbers_in_another_collection(vocabulary: int) -> None:
    texts, others = captions(11, 60), captions(12, 40, vocabulary)
    ours, _ = hold(encode([texts]), np.arange(60), 4)
    theirs, _ = hold(encode([others]), np.repeat(np.arange(10), 4), 4)
    roots = np.random.default_rng(2).integers(0, 10, 60)
    there = ours.numbers_in(theirs, roots)
    hits = 0
    for caption, text in enumerate(texts):
        for order in range(1, 5):
            for ngram in counted(text, order):
                expected = theirs.find(ngram, root=int(roots[caption]))
                assert there[order - 1][ours.find(ngram, root=caption)] == expected
                known = any(ngram in counted(other, order) for other in others[4 * roots[caption]:][:4])
                assert known == (expected >= 0)
                hits += known
    assert hits > 100


def test_common_ngrams() -> None:
    texts, root = captions(21, 60, 12), np.repeat(np.arange(15), 4)
    found, _ = hold(encode([texts]), root, 4)
    shared, counts, numbers = common(found)
    for order in range(1, 5):
        images = Counter(ngram for image in range(15) for ngram in
                         set().union(*(counted(texts[caption], order) for caption in np.flatnonzero(root == image))))
        expected = {ngram: count for ngram, count in images.items() if count > 1}
        assert 0 < len(expected) < len(images) or order == 1
        assert {shared.spell(order, number): count for number, count in enumerate(counts[order - 1])} == expected
        for number, there in enumerate(numbers[order - 1]):
            ngram = found.spell(order, number)
            assert there == shared.find(ngram) and (there >= 0) == (ngram in expected)


@pytest.mark.parametrize("highest", [0, 1, 5, 1 << 20, (1 << 62) + 3])
def test_sorted_by_key(highest: int) -> None:
    """Also keys that leave no room for the numbers beside them."""
    draw = np.random.default_rng(highest % 97)
    keys, numbers = draw.integers(0, highest + 1, 500), np.sort(draw.choice(800, 500, replace=False))
    parts = [(keys[place:place + 150], numbers[place:place + 150]) for place in range(0, 500, 150)]
    key, number = ngrams._by_key(parts, 800, highest.bit_length())
    order = np.lexsort((numbers, keys))
    assert np.array_equal(key, keys[order]) and np.array_equal(number, numbers[order])


@pytest.mark.parametrize("crowded", [False, True])
def test_common_in_blocks_and_without_room(crowded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = hold(encode([captions(22, 60, 12)]), np.repeat(np.arange(15), 4), 4)
    whole = common(found)
    monkeypatch.setattr(ngrams, "BLOCK", 7)
    if crowded:
        sort = ngrams._by_key
        monkeypatch.setattr(ngrams, "_by_key", lambda parts, most, bits: sort(parts, most, 63))
    again = common(found)
    assert whole[0].words == again[0].words
    for one, other in zip([*whole[0].keys, *whole[1], *whole[2]], [*again[0].keys, *again[1], *again[2]]):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("n", [1, 4])
def test_where_roots_begin(n: int) -> None:
    root = np.array([0, 0, 2, 2, 5])
    found, held = hold(encode([captions(5, 5)]), root, n)
    begins = found.begins(np.array([0, 1, 2, 3, 5, 6, 9]))
    for order, begin in enumerate(begins):
        for place, (first, last) in enumerate(zip(begin, begin[1:])):
            holders = held[order].caption[held[order].start[first]:held[order].start[last]]
            assert {*root[holders]} <= [{0}, set(), {2}, set(), {5}, set()][place]
        assert begin[0] == 0 and begin[-1] == len(found.keys[order]) and (order > 0 or begin[2] > 0)


def test_nothing_at_all() -> None:
    for texts in ([], [[], []]):
        found, held = hold(encode([texts]), np.arange(len(texts)), 3)
        assert [len(keys) for keys in found.keys] == [0, 0, 0] and all(len(who.times) == 0 for who in held)
        assert [len(numbers) for numbers in found.numbers_in(found)] == [0, 0, 0] and found.find(["a"]) == -1
    full, _ = hold(encode([captions(1, 5)]), np.zeros(5, np.int64), 3)
    assert isinstance(full, Ngrams)
    assert all((numbers == -1).all() for numbers in full.numbers_in(found))
