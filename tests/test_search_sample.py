"""Sampling: from the right distribution, and the same whatever else is drawn."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from search_tables import EOS, Table, TableSteps
from torch import Tensor

from minivl.errors import InputError
from minivl.search import Hypothesis, sample_search
from minivl.search.constraints import MinLength, RepetitionPenalty, Suppress


def draw(tables: list[Table], prompt: tuple[int, ...] = (0,), **options: object) -> list[list[Hypothesis]]:
    return sample_search(TableSteps(tables), torch.tensor([prompt] * len(tables)), eos_id=EOS, **options)


def expected(table: Table, ids: tuple[int, ...], start: int, change: object) -> float:
    """Probability of a sequence under a table whose every distribution is changed."""
    return math.prod(float(change(torch.from_numpy(table[ids[:t]].copy())).softmax(-1)[ids[t]])
                     for t in range(start, len(ids)))


def kept(logp: Tensor, count: int) -> Tensor:
    return logp.masked_fill(logp < logp.sort().values[-count], -math.inf)


def nucleus(logp: Tensor, p: float) -> Tensor:
    order = logp.argsort(descending=True)
    count = int((logp.exp()[order].cumsum(0) < p).sum()) + 1
    return kept(logp, count)


CHANGES = {
    "plain": ({}, lambda logp: logp),
    "hot": ({"temperature": 2.0}, lambda logp: logp / 2),
    "cold": ({"temperature": 0.5}, lambda logp: logp / 0.5),
    "top-k": ({"top_k": 2}, lambda logp: kept(logp, 2)),
    "top-p": ({"top_p": 0.6}, lambda logp: nucleus(logp, 0.6)),
    "all": ({"temperature": 1.5, "top_k": 3, "top_p": 0.8},
            lambda logp: nucleus(kept(logp / 1.5, 3).log_softmax(-1), 0.8)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("prompt", [(0,), (0, 3)])
def test_samples_are_as_frequent_as_they_are_probable(name: str, prompt: tuple[int, ...]) -> None:
    """3,000 samples: no frequency is off by more than 4 standard deviations."""
    options, change = CHANGES[name]
    table, count = Table(5), 3000
    found = draw([table], prompt, samples=count, max_len=3, **options)[0]
    frequencies = Counter(one.ids for one in found)
    total = 0.0
    for ids in table.sequences(prompt, 3):
        p = expected(table, ids, len(prompt), change)
        total += p
        assert abs(frequencies.pop(ids, 0) - count * p) <= 4 * math.sqrt(count * p * (1 - p)) + 1e-9, ids
    assert not frequencies and total == pytest.approx(1)


def test_what_comes_out() -> None:
    for one in draw([Table(3, vocabulary=6)], (0, 4), samples=50, max_len=5, temperature=2.0)[0]:
        new = one.ids[2:]
        assert one.ids[:2] == (0, 4) and 1 <= len(new) <= 5 and EOS not in new[:-1]
        assert new[-1] == EOS or len(new) == 5
        each = [float(Table(3, vocabulary=6)[one.ids[:t]][one.ids[t]]) for t in range(2, len(one.ids))]
        assert one.logps == pytest.approx(each, abs=1e-12)  # what the model says, not the temperature
        assert one.score == one.logprob == math.fsum(one.logps)


def test_neither_batch_nor_number_nor_length_changes_a_sample() -> None:
    tables = [Table(seed, vocabulary=6, sharp=2.0) for seed in range(8)]
    seeds = [(7, place) for place in range(8)]
    together = draw(tables, samples=5, max_len=8, seeds=seeds)
    for place, table in enumerate(tables):
        assert draw([table], samples=5, max_len=8, seeds=[seeds[place]])[0] == together[place]
        assert draw([table], samples=2, max_len=8, seeds=[seeds[place]])[0] == together[place][:2]
        short = draw([table], samples=5, max_len=4, seeds=[seeds[place]])[0]
        assert [one.ids for one in short] == [one.ids[:5] for one in together[place]]
    turned = draw(tables[::-1], samples=5, max_len=8, seeds=seeds[::-1])
    assert turned[::-1] == together
    others = draw(tables, samples=5, max_len=8, seeds=[(8, place) for place in range(8)])
    assert sum(a.ids != b.ids for x, y in zip(together, others) for a, b in zip(x, y)) > 20
    assert len({one.ids for found in together for one in found}) > 25
    by_place = draw([tables[0]] * 3, samples=4, max_len=8)  # without seeds: by place
    assert len({tuple(one.ids for one in found) for found in by_place}) == 3


def test_finished_images_leave_the_batch() -> None:
    steps = TableSteps([Table(seed, vocabulary=6, ends=2.0) for seed in range(10)])
    found = sample_search(steps, torch.zeros(10, 1, dtype=torch.long), eos_id=EOS, samples=3, max_len=12)
    longest = [max(len(one.ids) - 1 for one in some) for some in found]
    assert steps.rows == [10] + [3 * sum(length > step for length in longest) for step in range(1, max(longest))]
    assert len(set(longest)) > 2


def test_under_constraints() -> None:
    for one in draw([Table(1, vocabulary=5, ends=2.0)], samples=100, max_len=6,
                    constraints=[MinLength(4, 1, EOS), Suppress((2,))])[0]:
        assert len(one.ids) >= 5 and 2 not in one.ids
        assert one.logprob == pytest.approx(Table(1, vocabulary=5, ends=2.0).logprob(one.ids, 1), abs=1e-9)
    often = [sum(len(one.ids) - len(set(one.ids)) for one in
                 draw([Table(1, vocabulary=5)], samples=100, max_len=6, constraints=constraints)[0])
             for constraints in ([], [RepetitionPenalty(3.0)])]
    assert often[1] < 0.7 * often[0]


@pytest.mark.parametrize("options, message", [
    ({"samples": 0}, "samples"), ({"samples": True}, "samples"), ({"max_len": 0}, "max_len"),
    ({"temperature": 0.0}, "temperature.*beams=1"), ({"temperature": math.nan}, "temperature"),
    ({"top_k": 0}, "top_k"), ({"top_k": 1.5}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"),
    ({"seeds": [(1,), (2,)]}, "2 seeds for 1"), ({"eos_id": 4}, "eos_id"),
    ({"prompt": torch.zeros(1, 0, dtype=torch.long)}, "prompt"),
    ({"constraints": [Suppress((0, 1, 2, 3))]}, "nothing is left"),
])
def test_mistakes(options: dict[str, object], message: str) -> None:
    prompt = options.pop("prompt", torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(InputError, match=message):
        sample_search(TableSteps([Table(0)]), prompt, **{"eos_id": EOS, **options})


def test_nan_is_an_error_and_no_images_are_none() -> None:
    class Broken(Table):
        def __getitem__(self, history: object) -> np.ndarray:
            return np.full(self.vocabulary, np.nan)

    with pytest.raises(InputError, match="nan"):
        draw([Table(0), Broken(0)], samples=2)
    steps = TableSteps([])
    assert sample_search(steps, torch.zeros(0, 1, dtype=torch.long), eos_id=EOS) == [] and steps.rows == []


def test_a_token_without_probability_is_never_drawn() -> None:
    class Half(Table):
        def __getitem__(self, history: object) -> np.ndarray:
            return np.log(np.array([0.0, 0.0, 1.0, 0.0]) + 1e-300 * np.array([0, 0, 0, 0]) + 0.0, where=[0, 0, 1, 0],
                          out=np.full(4, -np.inf))

    assert {one.ids for one in draw([Half(0)], samples=200, max_len=2)[0]} == {(0, 2, 2)}
