"""Search against brute force: tables of probabilities whose best sequence can be enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from random_models import captioner, pictures
from search_tables import EOS, Table, TableSteps, best_of_all, close, scored, search
from torch import Tensor

from minivl.errors import InputError
from minivl.models.captioner import Captioner, Decoding
from minivl.search import Hypothesis, Normalisation, beam_search, greedy_search

NORMALISATIONS = ["none", "mean", "gnmt(0.7)"]


Opened = list[tuple[tuple[int, ...], float]]


def stages(table: Table, prompt: tuple[int, ...], beams: int, max_len: int, normalise: str = "none"
           ) -> Iterator[tuple[list[Hypothesis], Opened]]:
    """Beam search of one image, never stopped early, in plain Python: what has ended and what is open at each step."""
    finished: list[Hypothesis] = []
    opened: Opened = [(prompt, 0.0)]
    for length in range(1, max_len + 1):
        candidates = [((*ids, token), total + float(table[ids][token]))
                      for ids, total in opened for token in range(table.vocabulary)]
        candidates.sort(key=lambda one: -one[1])
        looked_at = candidates[:2 * beams if beams > 1 else 1]
        finished += [scored(*one, length, normalise) for one in looked_at[:beams] if one[0][-1] == EOS]
        opened = [one for one in looked_at if one[0][-1] != EOS][:beams]
        yield sorted(finished, key=lambda one: -one.score), opened


def reference(table: Table, prompt: tuple[int, ...], beams: int, max_len: int, normalise: str = "none"
              ) -> list[Hypothesis]:
    """What a search that never stops early finds, best first."""
    *_, (finished, opened) = stages(table, prompt, beams, max_len, normalise)
    finished += [scored(*one, max_len, normalise) for one in opened]
    return sorted(finished, key=lambda one: -one.score)


# -- against enumeration -------------------------------------------------------------------------------------

@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("prompt", [(0,), (0, 3, 2)])
@pytest.mark.parametrize("seed", range(6))
def test_with_enough_beams_it_finds_the_very_best(seed: int, prompt: tuple[int, ...], normalise: str) -> None:
    table, max_len = Table(seed), 4
    everything = best_of_all(table, prompt, max_len, normalise)
    found = search([table], prompt, beams=200, max_len=max_len, normalise=normalise, n_best=12)[0]
    close(found, everything[:12])
    assert math.isclose(sum(math.exp(one.logprob) for one in everything), 1.0)  # the enumeration is whole


def test_mean_and_sum_disagree_somewhere() -> None:
    both = [[search([Table(seed)], beams=5, max_len=5, normalise=normalise)[0][0].ids
             for normalise in ("none", "mean")] for seed in range(10)]
    assert sum(one != other for one, other in both) >= 3
    assert sum(len(other) > len(one) for one, other in both) >= 3  # the mean likes longer captions


@pytest.mark.parametrize("seed", range(30))
def test_one_beam_is_greedy(seed: int) -> None:
    table, ids = Table(seed, vocabulary=7), (0, 5)
    for _ in range(8):
        ids = (*ids, int(table[ids].argmax()))
        if ids[-1] == EOS:
            break
    for found in (search([table], (0, 5), beams=1, max_len=8)[0][0],
                  greedy_search(TableSteps([table]), torch.tensor([[0, 5]]), eos_id=EOS, max_len=8)[0]):
        assert found.ids == ids and found.logprob == pytest.approx(table.logprob(ids, 2), abs=1e-9)


def test_wider_is_usually_better_and_greedy_is_not_the_best() -> None:
    scores = torch.tensor([[search([Table(seed, 6)], beams=beams, max_len=6)[0][0].score
                            for beams in (1, 2, 4, 16)] for seed in range(25)])
    assert (scores.mean(0).diff() > 0).all() and (scores[:, 3] > scores[:, 0]).sum() >= 5


# -- against a search that never stops -----------------------------------------------------------------------

@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_stopping_early_changes_nothing(beams: int, normalise: str) -> None:
    for seed in range(25):
        table = Table(seed, vocabulary=5)
        everything = reference(table, (0,), beams, 7, normalise)
        for n_best in {1, beams}:
            found = search([table], beams=beams, max_len=7, normalise=normalise, n_best=n_best)[0]
            close(found, everything[:n_best])


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("beams, n_best", [(1, 1), (3, 1), (3, 3)])
def test_when_it_stops_no_open_beam_can_win(beams: int, n_best: int, normalise: str) -> None:
    """Whatever the open beams might still say, all of it tried out, would not enter the n best."""
    max_len, early = 6, 0
    for seed in range(24):
        table = Table(seed, vocabulary=4, sharp=2.5, ends=2.5)
        steps = TableSteps([table])
        found = beam_search(steps, torch.tensor([[0]]), eos_id=EOS, beams=beams, max_len=max_len, n_best=n_best,
                            normalise=normalise)[0]
        taken = len(steps.rows)
        *_, (_, opened) = itertools.islice(stages(table, (0,), beams, max_len, normalise), taken)
        if taken == max_len:
            continue
        early += 1
        for ids, total in opened:
            for way in table.sequences(ids, max_len - taken):
                whole = scored(way, total + table.logprob(way, len(ids)), len(way) - 1, normalise)
                assert whole.score <= found[-1].score + 1e-12
    assert early >= 5  # and it does stop before the end


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_stopping_as_transformers_does(normalise: str) -> None:
    """`beams` have finished, and the best open one would not be among them if it ended here."""
    differ = 0
    for seed in range(40):
        table, beams, max_len = Table(seed, 5, sharp=2.0), 3, 8
        expected, taken = None, max_len
        for length, (finished, opened) in enumerate(stages(table, (0,), beams, max_len, normalise), 1):
            reachable = scored((), opened[0][1], length, normalise).score if opened else -math.inf
            if len(finished) >= beams and finished[beams - 1].score >= reachable:
                expected, taken = finished, length
                break
        steps = TableSteps([table])
        found = beam_search(steps, torch.tensor([[0]]), eos_id=EOS, beams=beams, max_len=max_len, stop="hf",
                            normalise=normalise, n_best=3)[0]
        close(found, (expected or reference(table, (0,), beams, max_len, normalise))[:3])
        assert len(steps.rows) == taken
        exact = search([table], beams=beams, max_len=max_len, normalise=normalise, n_best=3)[0]
        differ += [one.ids for one in found] != [one.ids for one in exact]
    assert (differ > 0) == (normalise != "none")  # for sums, whose best can only fall, it is exact


def test_it_does_stop() -> None:
    """A table that says <EOS> at once, and one whose <EOS> never comes."""
    class Sure(Table):
        def __getitem__(self, history: Sequence[int]) -> np.ndarray:
            p = np.full(self.vocabulary, 0.01 / (self.vocabulary - 1))
            p[EOS if len(history) >= self.seed else 2] = 0.99
            return np.log(p)

    for length, rows in ((1, [1]), (3, [1, 3, 3]), (50, [1] + [3] * 9)):
        steps = TableSteps([Sure(length)])
        found = beam_search(steps, torch.tensor([[0]]), eos_id=EOS, beams=3, max_len=10)[0][0]
        assert steps.rows == rows
        assert found.ids == ((0, *[2] * (length - 1), EOS) if length < 10 else (0, *[2] * 10))


# -- batches -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("beams, n_best", [(1, 1), (2, 2), (4, 3)])
def test_a_batch_equals_one_by_one(beams: int, n_best: int, normalise: str) -> None:
    tables = [Table(seed, vocabulary=6, sharp=3.0) for seed in range(12)]
    options = {"beams": beams, "max_len": 8, "n_best": n_best, "normalise": normalise}
    together = search(tables, **options)
    for table, found in zip(tables, together):
        close(found, search([table], **options)[0])
    assert len({len(found[0].ids) for found in together}) > 2  # images finish at different times


def test_finished_images_leave_the_batch() -> None:
    tables = [Table(seed, vocabulary=6, sharp=3.0) for seed in range(12)]
    steps = TableSteps(tables)
    beam_search(steps, torch.zeros(12, 1, dtype=torch.long), eos_id=EOS, beams=3, max_len=8)
    alone = []
    for table in tables:
        one = TableSteps([table])
        beam_search(one, torch.zeros(1, 1, dtype=torch.long), eos_id=EOS, beams=3, max_len=8)
        alone.append(one.rows)
    assert steps.rows == [sum(column) for column in itertools.zip_longest(*alone, fillvalue=0)]
    assert steps.rows[0] == 12 and steps.rows[1] <= 36 and steps.rows[-1] < 36


def test_no_images_no_steps() -> None:
    steps = TableSteps([])
    assert beam_search(steps, torch.zeros(0, 1, dtype=torch.long), eos_id=EOS) == [] and steps.rows == []


# -- what comes out ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, length, divisor", [
    ("none", 7, 1.0), ("mean", 7, 7.0), ("gnmt(0)", 7, 1.0), ("gnmt(1)", 7, 2.0), ("gnmt( .5 )", 19, 2.0),
    ("gnmt(0.6)", 1, 1.0), ("gnmt(2.)", 7, 4.0),
])
def test_normalisations(text: str, length: int, divisor: float) -> None:
    assert Normalisation.parse(text).divisor(length) == pytest.approx(divisor, abs=1e-12)


@pytest.mark.parametrize("text", ["sum", "", "gnmt", "gnmt()", "gnmt(-1)", "gnmt(nan)", "gnmt(11)", "gnmt(1)\n", 3])
def test_other_normalisations(text: object) -> None:
    with pytest.raises(InputError, match="gnmt"):
        Normalisation.parse(text)


@pytest.mark.parametrize("beams, normalise", [(1, "none"), (4, "none"), (4, "mean"), (4, "gnmt(0.7)")])
def test_log_probabilities_of_tokens(beams: int, normalise: str) -> None:
    for seed in range(10):
        table = Table(seed, 5)
        for one in search([table], (0, 2), beams=beams, max_len=6, n_best=beams, normalise=normalise)[0]:
            expected = [float(table[one.ids[:t]][one.ids[t]]) for t in range(2, len(one.ids))]
            assert one.logps == pytest.approx(expected, abs=1e-12) and math.fsum(one.logps) == one.logprob


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_n_best_are_sorted_and_distinct(normalise: str) -> None:
    tables = [Table(seed, 5) for seed in range(10)]
    for found in search(tables, beams=6, max_len=5, n_best=6, normalise=normalise):
        assert len(found) == 6 and len({one.ids for one in found}) == 6
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("prompt", [(0,), (0, 2, 3)])
def test_max_len_counts_the_end_and_not_the_prompt(prompt: tuple[int, ...]) -> None:
    lengths = set()
    for seed in range(20):
        for found in search([Table(seed)], prompt, beams=4, max_len=3, n_best=4):
            for one in found:
                new = one.ids[len(prompt):]
                assert one.ids[:len(prompt)] == prompt and 1 <= len(new) <= 3 and EOS not in new[:-1]
                lengths.add((len(new), new[-1] == EOS))
    assert lengths == {(1, True), (2, True), (3, True), (3, False)}  # and unfinished ones only at the limit


def test_unfinished_beams_compete_at_the_limit() -> None:
    wins = {"ended": 0, "open": 0}
    for seed in range(40):
        best = search([Table(seed)], beams=3, max_len=2)[0][0]
        wins["ended" if best.ids[-1] == EOS else "open"] += 1
    assert min(wins.values()) > 5


@pytest.mark.parametrize("vocabulary, beams", [(2, 5), (3, 10), (2, 1)])
def test_fewer_words_than_beams(vocabulary: int, beams: int) -> None:
    for seed in range(5):
        table = Table(seed, vocabulary=vocabulary)
        close(search([table], beams=beams, max_len=3, n_best=min(beams, 3))[0],
              reference(table, (0,), beams, 3)[:min(beams, 3)])


def test_forbidden_words_are_never_said() -> None:
    """Log-probabilities of -inf: what has them is not found, not even to fill the n best."""
    class OneWay(Table):
        def __getitem__(self, history: Sequence[int]) -> np.ndarray:
            logp = np.full(self.vocabulary, -np.inf)
            logp[EOS if len(history) == 3 else 2] = 0.0
            return logp

    found = search([OneWay(0)], beams=4, max_len=6, n_best=4)[0]
    assert found == [Hypothesis((0, 2, 2, EOS), 0.0, 0.0)]


@pytest.mark.parametrize("options, message", [
    ({"beams": 0}, "beams"), ({"max_len": 0}, "max_len"), ({"n_best": 0}, "n_best"), ({"n_best": 4}, "n_b"),
    ({"normalise": "sum"}, "none, mean"), ({"stop": "never"}, "exact, hf"), ({"beams": True}, "beams"),
    ({"groups": 0}, "groups"), ({"groups": 2}, "groups=2 must divide beams=3"), ({"diversity": -1.0}, "diversity"),
    ({"eos_id": 4}, "eos_id"), ({"eos_id": -1}, "eos_id"),
    ({"prompt": torch.zeros(2, 0, dtype=torch.long)}, "prompt"),
    ({"prompt": torch.zeros(2, dtype=torch.long)}, "prompt"),
])
def test_mistakes(options: dict[str, object], message: str) -> None:
    prompt = options.pop("prompt", torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(InputError, match=message):
        beam_search(TableSteps([Table(0)]), prompt, **{"eos_id": EOS, **options})


def test_nan_is_an_error() -> None:
    class Broken(Table):
        def __getitem__(self, history: Sequence[int]) -> np.ndarray:
            return np.full(self.vocabulary, np.nan)

    for beams in (1, 3):
        with pytest.raises(InputError, match="nan"):
            search([Broken(0)], beams=beams, max_len=4)


def test_nan_behind_a_finished_sequence_is_an_error() -> None:
    class Late(Table):
        def __getitem__(self, history: Sequence[int]) -> np.ndarray:
            if len(history) > 1:
                return np.full(self.vocabulary, np.nan)
            return np.log(np.where(np.arange(self.vocabulary) == EOS, 0.4, 0.6 / (self.vocabulary - 1)))

    with pytest.raises(InputError, match="nan"):
        search([Late(0)], beams=3, n_best=3, max_len=4)


# -- through a network ---------------------------------------------------------------------------------------

class Whole:
    """The step protocol of a captioner without any cache: every step computes everything anew."""

    def __init__(self, model: Captioner, images: Tensor) -> None:
        self.model, self.tokens, self.ids = model, model.encode(images).tokens, torch.empty(0)

    def prefill(self, ids: Tensor) -> Tensor:
        self.ids = ids
        seen = self.model.memory(self.model.encoder.encode(pictures(1)))
        repeated = self.tokens.repeat_interleave(len(ids) // len(self.tokens), 0)
        return self.model(None, ids, memory=seen._replace(tokens=repeated))[:, -1].log_softmax(-1)

    def step(self, ids: Tensor) -> Tensor:
        return self.prefill(torch.cat([self.ids, ids[:, None]], 1))

    def reorder(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]

    def select(self, images: Tensor) -> None:
        share = len(self.ids) // len(self.tokens)
        self.ids = self.ids.view(len(self.tokens), share, -1)[images].flatten(0, 1)
        self.tokens = self.tokens[images]


@torch.no_grad()
def test_a_hundred_random_captioners() -> None:
    """Cached and uncached searches agree, and log-probabilities are the teacher-forced sums."""
    lengths = set()
    for seed in range(100):
        generator = np.random.default_rng(seed)
        beams, max_len = int(generator.integers(1, 5)), int(generator.integers(1, 11))
        normalise = str(generator.choice(NORMALISATIONS))
        model = captioner(seed, scale=0.35, depth=1 + seed % 2, norm=("pre", "post")[seed // 2 % 2],
                          tied=seed % 3 == 0, positions=("learned", "sinusoidal")[seed // 4 % 2])
        images, prompt = pictures(3, seed), torch.tensor([[2, 7], [2, 5], [2, 2]])
        options = {"eos_id": 3, "beams": beams, "max_len": max_len, "normalise": normalise, "n_best": beams}
        found = beam_search(model.decoding(model.encode(images)), prompt, **options)
        uncached = beam_search(Whole(model, images), prompt, **options)
        for image, (some, others) in enumerate(zip(found, uncached)):
            assert [one.ids for one in some] == [one.ids for one in others], seed
            for one in some:
                logp = model.replay(images[image:image + 1], [one.ids]).log_softmax(-1)[0]
                total = sum(float(logp[t, token]) for t, token in enumerate(one.ids[1:]) if t > 0)
                assert one.logprob == pytest.approx(total, abs=1e-5), seed
                lengths.add(len(one.ids))
    assert len(lengths) >= 8


@torch.no_grad()
def test_beams_share_one_copy_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of the pictures: one row per image that is still open, whatever the beams."""
    model, seen = captioner(4, scale=0.35), []
    step = Decoding.step

    def watched(self: Decoding, ids: Tensor) -> Tensor:
        logp, state = step(self, ids), self._state
        for own, cross in zip(state.self_caches, state.cross_caches):
            assert cross.k.shape[0] == cross.v.shape[0] == state.memory.tokens.shape[0]
            assert own.k.shape[0] == len(ids) == 4 * cross.k.shape[0]
            assert cross.length == 7
        seen.append(state.memory.tokens.shape[0])
        return logp

    monkeypatch.setattr(Decoding, "step", watched)
    captions = model.caption(pictures(6), beams=4, max_len=11)
    assert seen[0] == 6 and seen[-1] < 6 and seen == sorted(seen, reverse=True)
    assert len({len(caption.ids) for caption in captions}) > 1


def test_the_search_knows_no_network() -> None:
    import minivl.search as module
    names = {name for name in vars(module) if not name.startswith("__")}
    assert not names & {"nn", "Captioner", "Memory", "KVCache"}
