"""n-grams as numbers: captions become flat arrays, in which counting and matching are a few sorts.

An n-gram of order k is the pair (number of its first k-1 words, number of its last word); its own number is the
place of that pair among all there are, in alphabetical order. That is exact, without a hash that could mix two of
them up. The n-grams of many captions or images are kept apart by a *root*, the caption or image, as the pair of order
1 is (root, word): then all that belongs to one image lies side by side, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .tokens import Words, joined

Ngram = tuple[str, ...]

BLOCK = 1 << 16  # words whose n-grams are sorted at a time: they fit into a processor's cache


@dataclass(frozen=True, eq=False)
class Ngrams:
    """The different n-grams of each root: what their numbers stand for.

    Attributes:
        words: V words in alphabetical order.
        keys: for each order k = 1 to n (G_k,), rising: the number of the first k-1 words (of order 1: the root),
            then, in the lowest `bits`, the number of the last word.
    """

    words: list[str]
    keys: tuple[np.ndarray, ...]

    @property
    def bits(self) -> int:
        """As many as the number of a word has."""
        return len(self.words).bit_length()

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def split(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the n-grams of an order: the numbers of their first words (or the root) and of their last word."""
        keys = self.keys[order - 1]
        return keys >> self.bits, keys & ((1 << self.bits) - 1)

    def find(self, ngram: Sequence[str], root: int = 0) -> int:
        """The number of an n-gram, -1 if it is not there or longer than the longest."""
        number = root
        for order, word in enumerate(ngram):
            if order >= len(self.keys) or word not in self.index:
                return -1
            key = number << self.bits | self.index[word]
            number = int(look_up(np.array([key]), self.keys[order])[0])
            if number < 0:
                return -1
        return number if len(ngram) else -1

    def spell(self, order: int, number: int) -> Ngram:
        """The words of an n-gram of that order."""
        backwards = []
        for keys in self.keys[order - 1::-1]:
            number, word = divmod(int(keys[number]), 1 << self.bits)
            backwards.append(self.words[word])
        return tuple(backwards[::-1])

    def begins(self, roots: np.ndarray) -> list[np.ndarray]:
        """For each order (R,): where the n-grams of each of these roots begin; of one that is too large, the end."""
        found = [roots]
        for keys in self.keys:
            found.append(np.searchsorted(keys, found[-1] << self.bits))
        return found[1:]

    def numbers_in(self, other: Ngrams, roots: np.ndarray | None = None) -> list[np.ndarray]:
        """For each order (G_k,): the number that each n-gram has in the other, -1 where it is not there.

        Args:
            other: where to look.
            roots: for each of our roots the one of the other in which to look; None: 0, its only one.
        """
        word_there = np.fromiter((other.index.get(word, -1) for word in self.words), np.int64, len(self.words))
        found: list[np.ndarray] = []
        for order, theirs in enumerate(other.keys, 1):
            first, last = self.split(order)
            if found:
                first = found[-1][first]
            else:
                first = np.zeros_like(first) if roots is None else roots[first]
            last = word_there[last]
            found.append(look_up(np.where((first >= 0) & (last >= 0), first << other.bits | last, -1), theirs))
        return found


def look_up(wanted: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Where each value stands in a rising array, -1 where it does not."""
    if not len(rising):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
    return np.where(rising[place] == wanted, place, -1)


class Held(NamedTuple):
    """Which captions hold the n-grams of one order, and how often.

    Attributes:
        start: (G_k + 1,) where each n-gram begins in the following two.
        caption: (E,) the number of a caption that has it; rising within an n-gram.
        times: (E,) how often.
    """

    start: np.ndarray
    caption: np.ndarray
    times: np.ndarray


def hold(text: Words, root: np.ndarray, n: int) -> tuple[Ngrams, list[Held]]:
    """Number and count the n-grams of captions.

    Args:
        text: C captions.
        root: (C,) of each, not falling, such as its image.
        n: the longest order.

    Returns:
        The n-grams of all roots, and for each order who holds them.
    """
    bits = len(text.words).bit_length()
    most = [int(np.maximum(text.lengths - order, 0).sum()) for order in range(n)]
    kinds = np.int64, np.int32 if most[0] < 1 << 31 else np.int64, np.int32, np.int32
    columns = [tuple(_Column(size + 1, kind) for kind in kinds) for size in most]  # keys, start, caption and times
    ends = np.cumsum(text.lengths)
    for captions in _blocks(ends, root):
        words = np.arange(ends[captions.start] - text.lengths[captions.start], ends[captions.stop - 1])  # (W,)
        caption = np.repeat(np.arange(captions.start, captions.stop), text.lengths[captions])  # (W,)
        _hold(text.ids[words], caption, ends[caption] - words, root[caption], bits, columns)
    for _, start, holder, _ in columns:
        start.add(np.array([holder.used]))
    keys = tuple(order[0].filled for order in columns)
    return Ngrams(text.words, keys), [Held(*(column.filled for column in order[1:])) for order in columns]


class _Column:
    """An array that is filled from the left; what is not filled takes no memory."""

    def __init__(self, most: int, kind: type) -> None:
        self._values: np.ndarray = np.empty(most, kind)
        self.used = 0

    def add(self, values: np.ndarray) -> None:
        self._values[self.used:self.used + len(values)] = values
        self.used += len(values)

    @property
    def filled(self) -> np.ndarray:
        return self._values[:self.used]


def _blocks(ends: np.ndarray, root: np.ndarray) -> list[slice]:
    """Cut captions where a root begins, at every `BLOCK` words or so."""
    if not len(ends):
        return []
    begins = np.flatnonzero(_changes(root))
    cuts = begins[np.flatnonzero(_changes(ends[begins] // BLOCK))].tolist()
    return [slice(*pair) for pair in zip(cuts, [*cuts[1:], len(ends)])]


def _hold(ids: np.ndarray, caption: np.ndarray, left: np.ndarray, gram: np.ndarray, bits: int,
          columns: Sequence[tuple[_Column, ...]]) -> None:
    """Add the n-grams of some captions to keys, start, caption and times of each order.

    Args:
        ids, caption, left, gram: (W,) of each word its number, its caption, the number of words from here to the end
            of the caption, and its root.
        bits: of the number of a word.
        columns: for each order.
    """
    at = np.arange(len(ids))  # where n-grams begin
    for order, (keys, start, holder, times) in enumerate(columns):
        there = left[at] > order
        at = at[there]
        key = gram[there] << bits | ids[at + order]
        ranked = np.argsort(key, kind="stable")  # fast, as roots rise already
        key, held_by = key[ranked], caption[at[ranked]]
        new = _changes(key)
        gram = np.empty(len(key), np.int64)
        gram[ranked] = np.cumsum(new) + (keys.used - 1)
        entry = np.flatnonzero(new | _changes(held_by))  # an n-gram in a caption
        keys.add(key[new])
        start.add(np.flatnonzero(new[entry]) + holder.used)
        holder.add(held_by[entry])
        times.add(np.diff(entry, append=len(key)))


def _changes(values: np.ndarray) -> np.ndarray:
    """Where a value is not the one before it."""
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first


def common(ngrams: Ngrams) -> tuple[Ngrams, list[np.ndarray], list[np.ndarray]]:
    """The n-grams that more than one root has.

    Returns:
        Those n-grams without a root; for each order (G'_k,) how many roots have each; and (G_k,) the number among
        them of each n-gram given, -1 for one that a single root has.
    """
    word = ngrams.split(1)[1]
    count = np.bincount(word, minlength=len(ngrams.words))  # (V,)
    word_now = np.where(count > 1, np.cumsum(count > 1) - 1, -1)
    words = [ngrams.words[place] for place in np.flatnonzero(count > 1)]
    keys, counts, numbers = [np.arange(len(words))], [count[count > 1]], [word_now[word]]
    for order in range(2, len(ngrams.keys) + 1):
        most = len(ngrams.keys[order - 1])
        key, node = _by_key(_spelled_anew(ngrams, order, numbers[-1], word_now, len(words)), most,
                            (len(keys[-1]).bit_length() + len(words).bit_length()))
        begin = np.flatnonzero(_changes(key))
        count = np.diff(begin, append=len(key))
        shared = count > 1
        keys.append(key[begin[shared]])
        counts.append(count[shared])
        numbers.append(np.full(most, -1))
        numbers[-1][node[np.repeat(shared, count)]] = np.repeat(np.arange(len(keys[-1])), counts[-1])
    return Ngrams(words, tuple(keys)), counts, numbers


def _spelled_anew(ngrams: Ngrams, order: int, start_now: np.ndarray, word_now: np.ndarray,
                  size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys of n-grams by the new numbers of their first words and of their last word, and their old numbers.

    Args:
        ngrams: whose.
        order: of these n-grams.
        start_now, word_now: the new numbers, -1 for what is left out, and all n-grams that have it.
        size: how many words there are now.

    Yields:
        Some at a time: memory that is used again is faster than fresh one.
    """
    keys = ngrams.keys[order - 1]
    for begin in range(0, len(keys), BLOCK):
        part = keys[begin:begin + BLOCK]
        first, last = start_now[part >> ngrams.bits], word_now[part & ((1 << ngrams.bits) - 1)]
        there = np.flatnonzero((first >= 0) & (last >= 0))
        yield first[there] << size.bit_length() | last[there], there + begin


def _by_key(parts: Iterable[tuple[np.ndarray, np.ndarray]], most: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs of a key and a number by key, then by number.

    Args:
        parts: (P,) keys and (P,) numbers that rise from part to part, `most` of them or fewer, from 0 to most - 1.
        most: room for them.
        bits: which the keys have at most.
    """
    low = most.bit_length()
    if bits + low > 63:
        keys, numbers = map(joined, zip(*parts))
        order = np.argsort(keys, kind="stable")
        return keys[order], numbers[order]
    both, used = np.empty(most, np.int64), 0  # key and number as one: sorts twice as fast
    for key, number in parts:
        both[used:used + len(key)] = key << low | number
        used += len(key)
    both = both[:used]
    both.sort()
    number = both & ((1 << low) - 1)
    both >>= low
    return both, number
