"""Diverse beam search against the algorithm of Vijayakumar et al. 2018 written out in plain Python."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from search_tables import EOS, Table, TableSteps, close, scored, search

from minivl.search import Hypothesis, beam_search

Group = list[tuple[tuple[int, ...], float]]


def reference(table: Table, beams: int, groups: int, diversity: float, max_len: int, normalise: str = "none"
              ) -> list[list[Hypothesis]]:
    """What each group finds, best first; no group ever stops early. Scores have lost the penalties."""
    width = beams // groups
    finished: list[list[Hypothesis]] = [[] for _ in range(groups)]
    opened: list[Group] = [[((0,), 0.0)] for _ in range(groups)]
    for length in range(1, max_len + 1):
        said: Counter[int] = Counter()
        for group in range(groups):
            candidates = [((*ids, token), total + float(table[ids][token]) - diversity * said[token])
                          for ids, total in opened[group] for token in range(table.vocabulary)]
            candidates.sort(key=lambda one: -one[1])
            looked_at = candidates[:2 * width if width > 1 else 1]
            finished[group] += [scored(*one, length, normalise) for one in looked_at[:width] if one[0][-1] == EOS]
            opened[group] = [one for one in looked_at if one[0][-1] != EOS][:width]
            said.update(ids[-1] for ids, _ in opened[group])
    for found, rest in zip(finished, opened):
        found += [scored(*one, max_len, normalise) for one in rest]
        found.sort(key=lambda one: -one.score)
        del found[width:]
    return finished


def in_turn(found: list[list[Hypothesis]], n_best: int) -> list[Hypothesis]:
    """The best of each group, then the second best of each; the same ids once."""
    chosen: dict[tuple[int, ...], Hypothesis] = {}
    for place in range(max(map(len, found))):
        for one in sorted((group[place] for group in found if place < len(group)), key=lambda one: -one.score):
            chosen.setdefault(one.ids, one)
    return list(chosen.values())[:n_best]


@pytest.mark.parametrize("normalise", ["none", "mean", "gnmt(0.7)"])
@pytest.mark.parametrize("beams, groups", [(2, 2), (4, 2), (6, 3), (3, 1)])
@pytest.mark.parametrize("diversity", [0.0, 0.6, 5.0])
def test_equal_to_the_algorithm(beams: int, groups: int, diversity: float, normalise: str) -> None:
    for seed in range(6):
        table = Table(seed, vocabulary=6, ends=0.5)
        expected = in_turn(reference(table, beams, groups, diversity, 6, normalise), beams)
        found = search([table], beams=beams, groups=groups, diversity=diversity, max_len=6, n_best=beams,
                       normalise=normalise)[0]
        assert [one.ids for one in found] == [one.ids for one in expected]
        for one, other in zip(found, expected):
            assert one.score == pytest.approx(other.score, abs=1e-9)
            assert one.logprob == pytest.approx(table.logprob(one.ids, 1), abs=1e-9)


def test_groups_say_different_things() -> None:
    plain, diverse = [], []
    for seed in range(20):
        table = Table(seed, vocabulary=8, sharp=2.5)
        for found, options in ((plain, {}), (diverse, {"groups": 3, "diversity": 6.0})):
            best = search([table], beams=3, max_len=6, n_best=3, **options)[0]
            found.append(len({one.ids[1] for one in best}))
    assert sum(diverse) >= 50 > 40 >= sum(plain)


def test_the_first_group_is_a_plain_search() -> None:
    for seed in range(10):
        table = Table(seed, vocabulary=6)
        alone = search([table], beams=2, max_len=6)[0][0]
        assert alone.ids in {one.ids for one in search([table], beams=6, groups=3, max_len=6, n_best=3)[0]}


def test_no_two_are_the_same() -> None:
    for seed in range(10):
        found = search([Table(seed)], beams=6, groups=3, diversity=0.0, max_len=4, n_best=6)[0]
        assert len({one.ids for one in found}) == len(found) >= 2


def test_a_batch_equals_one_by_one() -> None:
    tables = [Table(seed, vocabulary=6, sharp=3.0) for seed in range(12)]
    options = {"beams": 4, "groups": 2, "max_len": 8, "n_best": 4}
    together = search(tables, **options)
    for table, found in zip(tables, together):
        close(found, search([table], **options)[0])
    steps = TableSteps(tables)
    beam_search(steps, torch.zeros(12, 1, dtype=torch.long), eos_id=EOS, **options)
    assert steps.rows[1] == 48 > steps.rows[-1]  # and finished images leave
