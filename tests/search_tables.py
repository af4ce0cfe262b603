"""Step protocols over tables of probabilities, whose best sequences can be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from minivl.search import Hypothesis, Normalisation, beam_search

EOS = 1


class Table:
    """Log-probabilities of the next of V tokens, a random function of the whole history; `ends` leans to <EOS>."""

    def __init__(self, seed: int, vocabulary: int = 4, sharp: float = 1.5, ends: float = 0.0) -> None:
        self.seed, self.vocabulary, self.sharp, self.ends = seed, vocabulary, sharp, ends
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def __getitem__(self, history: Sequence[int]) -> np.ndarray:
        history = tuple(history)
        if history not in self._known:
            scores = np.random.default_rng((self.seed, *history)).normal(size=self.vocabulary) * self.sharp
            scores[EOS] += self.ends
            self._known[history] = scores - np.log(np.exp(scores).sum())
        return self._known[history]

    def logprob(self, ids: Sequence[int], prompt: int) -> float:
        return float(sum(self[ids[:t]][ids[t]] for t in range(prompt, len(ids))))

    def sequences(self, prompt: tuple[int, ...], max_len: int) -> Iterator[tuple[int, ...]]:
        """Everything that can be said: ended by <EOS>, or max_len new tokens without."""
        others = [token for token in range(self.vocabulary) if token != EOS]
        for length in range(max_len):
            for words in itertools.product(others, repeat=length):
                yield (*prompt, *words, EOS)
        for words in itertools.product(others, repeat=max_len):
            yield (*prompt, *words)


class TableSteps:
    """The step protocol over one table per image; remembers how many rows each step saw."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables, self.histories, self.rows = list(tables), [], []

    def prefill(self, ids: Tensor) -> Tensor:
        self.histories = [[tuple(row)] for row in ids.tolist()]
        return self._logp()

    def step(self, ids: Tensor) -> Tensor:
        tokens = iter(ids.tolist())
        self.histories = [[(*history, next(tokens)) for history in rows] for rows in self.histories]
        assert next(tokens, None) is None
        return self._logp()

    def reorder(self, rows: Tensor) -> None:
        share, flat = len(self.histories[0]), list(itertools.chain(*self.histories))
        new = len(rows) // len(self.histories)
        groups = [rows[i * new:(i + 1) * new].tolist() for i in range(len(self.histories))]
        assert all(row // share == i for i, group in enumerate(groups) for row in group), "it left its image"
        self.histories = [[flat[row] for row in group] for group in groups]

    def select(self, images: Tensor) -> None:
        self.histories = [self.histories[i] for i in images.tolist()]
        self.tables = [self.tables[i] for i in images.tolist()]

    def _logp(self) -> Tensor:
        self.rows.append(sum(map(len, self.histories)))
        return torch.tensor(np.array([table[history] for table, rows in zip(self.tables, self.histories)
                                      for history in rows]))


def total_of(table: Table, ids: Sequence[int], prompt: int, normalise: str = "none") -> Hypothesis:
    """A sequence with its sum of log-probabilities and its score."""
    return scored(tuple(ids), table.logprob(ids, prompt), len(ids) - prompt, normalise)


def scored(ids: tuple[int, ...], total: float, length: int, normalise: str) -> Hypothesis:
    return Hypothesis(ids, total, total / Normalisation.parse(normalise).divisor(length))


def best_of_all(table: Table, prompt: tuple[int, ...], max_len: int, normalise: str = "none") -> list[Hypothesis]:
    """Everything that can be said, best first."""
    everything = [total_of(table, ids, len(prompt), normalise) for ids in table.sequences(prompt, max_len)]
    return sorted(everything, key=lambda one: -one.score)


def search(tables: Sequence[Table], prompt: tuple[int, ...] = (0,), **options: object
           ) -> list[list[Hypothesis]]:
    return beam_search(TableSteps(tables), torch.tensor([prompt] * len(tables)), eos_id=EOS, **options)


def close(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    assert [one.ids for one in found] == [one.ids for one in expected]
    for one, other in zip(found, expected):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-9)
        assert one.score == pytest.approx(other.score, abs=1e-9)
