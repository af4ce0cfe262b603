"""Each constraint against the plain words of its definition, and searches that keep to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from search_tables import EOS, Table, TableSteps, best_of_all, close, search
from torch import Tensor
from transformers.generation.logits_process import (NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor,
                                                    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

from minivl.errors import InputError
from minivl.search import Automaton, Constraint, Phrase, Pieces, beam_search
from minivl.search.constraints import (Avoid, MinLength, NoRepeatNgram, RepetitionPenalty, Suppress, Temperature, TopK,
                                       TopP, constrained)

Allowed = Callable[[tuple[int, ...]], bool]


def texts(rows: int = 40, length: int = 9, vocabulary: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids (rows, length) of few words, so that they repeat, and log-probabilities (rows, vocabulary)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    return ids, (torch.randn(rows, vocabulary, generator=generator) * 2).log_softmax(-1)


def avoiding(*phrases: Sequence[int], vocabulary: int = 4) -> Avoid:
    named = [Phrase.of(str(phrase), [phrase]) for phrase in phrases]
    return Avoid(Automaton.build(named, Pieces.words(vocabulary), wanted="any"))


def contains(ids: Sequence[int], phrase: Sequence[int]) -> bool:
    return any(tuple(ids[start:start + len(phrase)]) == tuple(phrase) for start in range(len(ids)))


def repeats(ids: Sequence[int], n: int) -> bool:
    grams = [tuple(ids[start:start + n]) for start in range(len(ids) - n + 1)]
    grams = [gram for gram in grams if gram[-1] != EOS]
    return len(set(grams)) < len(grams)


# -- one by one ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("constraint", [
    Suppress((2, 4)), MinLength(12, 2, 1), RepetitionPenalty(1.7), NoRepeatNgram(2, 1), Temperature(0.6), TopK(2),
    TopP(0.7), avoiding((2, 3), (4,), vocabulary=6)])
def test_nothing_is_changed_in_place(constraint: Constraint) -> None:
    ids, logp = texts()
    before = ids.clone(), logp.clone()
    changed = constraint(ids, logp, 5)
    assert torch.equal(ids, before[0]) and torch.equal(logp, before[1]) and not torch.equal(changed, logp)


def test_suppress() -> None:
    ids, logp = texts()
    out = Suppress((2, 5))(ids, logp, 3)
    assert (out[:, [2, 5]] == -math.inf).all() and torch.equal(out[:, [0, 1, 3, 4]], logp[:, [0, 1, 3, 4]])


def test_min_length_counts_the_end_as_max_len_does() -> None:
    ids, logp = texts(length=5)
    for least in range(1, 7):  # the next token is new token 4 after a prompt of 2
        out = MinLength(least, 2, EOS)(ids, logp, 3)
        assert bool((out[:, EOS] == -math.inf).all()) == (least > 4)
        assert torch.equal(out[:, 2:], logp[:, 2:])


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty_as_in_transformers(penalty: float) -> None:
    ids, logp = texts(length=4)
    assert torch.equal(RepetitionPenalty(penalty)(ids, logp, 3), RepetitionPenaltyLogitsProcessor(penalty)(ids, logp))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 4, 20])
def test_ngrams_as_in_transformers(n: int, length: int) -> None:
    ids, logp = texts(length=length, vocabulary=4)
    out = NoRepeatNgram(n, eos_id=99)(ids, logp, 3)
    assert torch.equal(out, NoRepeatNGramLogitsProcessor(n)(ids, logp))
    free = NoRepeatNgram(n, eos_id=1)(ids, logp, 3)  # the end is no repetition
    assert torch.equal(free[:, 1], logp[:, 1]) and torch.equal(free[:, [0, 2, 3]], out[:, [0, 2, 3]])


def test_some_ngrams_are_repeated() -> None:
    ids, logp = texts(vocabulary=4)
    shares = [(NoRepeatNgram(n, 99)(ids, logp, 3) == -math.inf).float().mean() for n in (1, 2, 3)]
    assert shares[0] > shares[1] > shares[2] > 0


@pytest.mark.parametrize("constraint, theirs", [
    *((Temperature(t), TemperatureLogitsWarper(t)) for t in (0.3, 1.9)),
    *((TopK(k), TopKLogitsWarper(k)) for k in (1, 3, 9)),
    *((TopP(p), TopPLogitsWarper(p)) for p in (0.05, 0.5, 0.9, 0.999, 1.0)),
])
def test_what_is_sampled_from_as_in_transformers(constraint: Constraint, theirs: Callable[..., Tensor]) -> None:
    ids, logp = texts()
    out, expected = constraint(ids, logp, 3).softmax(-1), theirs(ids, logp).softmax(-1)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    assert ((out == 0) == (expected == 0)).all()


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logp = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for p, kept in ((0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})):
        assert set((TopP(p)(torch.zeros(1, 1), logp, 1) > -math.inf).nonzero()[:, 1].tolist()) == kept


def test_constraints_act_in_their_order() -> None:
    ids, logp = texts(6, 5)
    three = logp.view(2, 3, 6)
    out = constrained([RepetitionPenalty(2.0), TopK(1)], ids.view(2, 3, 5), three, 4)
    assert torch.equal(out.flatten(0, 1), TopK(1)(ids, RepetitionPenalty(2.0)(ids, logp, 4), 4))
    assert constrained([], ids.view(2, 3, 5), three, 4) is three


# -- searches that keep to them ------------------------------------------------------------------------------

CASES: dict[str, tuple[Callable[[], Constraint], Allowed]] = {
    "suppress": (lambda: Suppress((2,)), lambda new: 2 not in new),
    "min length": (lambda: MinLength(3, 1, EOS), lambda new: EOS not in new[:2]),
    "phrases": (lambda: avoiding((2, 3), (0, 0, 2)), lambda new: not contains((0, *new), (2, 3))
                and not contains((0, *new), (0, 0, 2))),
    "bigrams": (lambda: NoRepeatNgram(2, EOS), lambda new: not repeats((0, *new), 2)),
}


@pytest.mark.parametrize("normalise", ["none", "mean", "gnmt(0.7)"])
@pytest.mark.parametrize("name", CASES)
def test_the_best_of_what_is_allowed(name: str, normalise: str) -> None:
    constraint, allowed = CASES[name]
    changed = 0
    for seed in range(8):
        table = Table(seed)
        everything = best_of_all(table, (0,), 4, normalise)
        rest = [one for one in everything if allowed(one.ids[1:])]
        found = search([table], beams=200, max_len=4, normalise=normalise, n_best=8, constraints=[constraint()])[0]
        close(found, rest[:8])
        changed += everything[:8] != rest[:8]
    assert changed >= 4


def test_a_penalty_changes_the_score_and_not_the_log_probability() -> None:
    changed = 0
    for seed in range(20):
        table = Table(seed, vocabulary=5)
        for one in search([table], beams=4, max_len=7, n_best=4, constraints=[RepetitionPenalty(2.5)])[0]:
            assert one.logprob == pytest.approx(table.logprob(one.ids, 1), abs=1e-9)
            punished = [float(table[one.ids[:t]][one.ids[t]]) * (2.5 if one.ids[t] in one.ids[:t] else 1)
                        for t in range(1, len(one.ids))]
            assert one.score == pytest.approx(sum(punished), abs=1e-9)
        free = search([table], beams=4, max_len=7)[0][0]
        changed += free.ids != search([table], beams=4, max_len=7, constraints=[RepetitionPenalty(2.5)])[0][0].ids
    assert changed >= 3


@pytest.mark.parametrize("beams", [1, 3])
def test_stopping_early_changes_nothing_under_constraints(beams: int) -> None:
    class Never(TableSteps):
        """A table that shows whether a search that goes on to the end finds anything better."""

    wishes = [RepetitionPenalty(1.4), NoRepeatNgram(2, EOS), MinLength(3, 1, EOS)]
    for seed in range(15):
        table = Table(seed, vocabulary=5, ends=1.0)
        for normalise in ("none", "mean", "gnmt(0.7)"):
            options = {"beams": beams, "normalise": normalise, "constraints": wishes}
            steps = Never([table])
            found = beam_search(steps, torch.tensor([[0]]), eos_id=EOS, max_len=7, n_best=beams, **options)[0]
            everything = unstopped(table, beams, 7, normalise, wishes)
            assert [one.ids for one in found] == [ids for ids, _ in everything[:beams]]
            assert [one.score for one in found] == pytest.approx([score for _, score in everything[:beams]], abs=1e-9)


def unstopped(table: Table, beams: int, max_len: int, normalise: str, wishes: Sequence[Constraint]
              ) -> list[tuple[tuple[int, ...], float]]:
    """Beam search under constraints in plain Python that never stops before the end: (ids, score), best first."""
    from minivl.search import Normalisation
    divisor = Normalisation.parse(normalise).divisor
    finished, opened = [], [((0,), 0.0)]
    for length in range(1, max_len + 1):
        candidates = []
        for ids, total in opened:
            logp = torch.from_numpy(table[ids].copy())[None]
            for wish in wishes:
                logp = wish(torch.tensor([ids]), logp, max_len - length + 1)
            candidates += [((*ids, token), total + value) for token, value in enumerate(logp[0].tolist())
                           if value > -math.inf]
        candidates.sort(key=lambda one: -one[1])
        looked_at = candidates[:2 * beams if beams > 1 else 1]
        finished += [(ids, total / divisor(length)) for ids, total in looked_at[:beams] if ids[-1] == EOS]
        opened = [one for one in looked_at if one[0][-1] != EOS][:beams]
    finished += [(ids, total / divisor(max_len)) for ids, total in opened]
    return sorted(finished, key=lambda one: -one[1])


def test_nothing_left_to_say() -> None:
    with pytest.raises(InputError, match="image 1.*Suppress, MinLength"):
        search([Table(0), OnlyTwo(1)], beams=2, max_len=3, constraints=[Suppress((2, EOS)), MinLength(2, 1, EOS)])


class OnlyTwo(Table):
    """Says 2 and <EOS> only."""

    def __getitem__(self, history: Sequence[int]) -> np.ndarray:
        logp = np.full(self.vocabulary, -np.inf)
        logp[[2, EOS]] = np.log(0.5)
        return logp


@pytest.mark.parametrize("beams", [1, 4])
def test_constraints_in_a_batch_are_those_of_one_by_one(beams: int) -> None:
    tables = [Table(seed, vocabulary=6, sharp=3.0) for seed in range(10)]
    options = {"beams": beams, "max_len": 8, "n_best": beams,
               "constraints": [RepetitionPenalty(1.2), avoiding((2, 3), (4,), vocabulary=6), NoRepeatNgram(2, EOS)]}
    for table, found in zip(tables, search(tables, **options)):
        close(found, search([table], **options)[0])
