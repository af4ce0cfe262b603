"""Words that must appear: the automaton against reading the text, the search against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from search_tables import EOS, Table, TableSteps, best_of_all, close, scored, search

from minivl.errors import InputError
from minivl.search import Automaton, Phrase, Pieces, beam_search
from minivl.search.automaton import FAR
from minivl.search.constraints import MinLength, NoRepeatNgram, Suppress

# pieces of words over {a, b}: id -> what it writes; a leading space begins a word
LETTERS = ["", "", " a", "a", "b", " b", "-", " ab"]
BEGINS = [True, True, True, False, False, True, False, True]


def pieces() -> Pieces:
    joins = torch.tensor([not begins for begins in BEGINS])
    marks = torch.tensor([text == "-" for text in LETTERS])
    holds = torch.ones(8, dtype=torch.bool)
    holds[:2] = False  # special tokens end a word
    return Pieces(joins, holds, marks)


def words(ids: Sequence[int]) -> list[str]:
    """The words of a text in these pieces: what space separates, without the marks at its edges."""
    text = "".join(" " if id < 2 else LETTERS[id] for id in ids)
    return [word for part in text.split() if (word := part.strip("-"))]


def phrases(*spellings: Sequence[Sequence[int]]) -> list[Phrase]:
    return [Phrase.of(str(one), one) for one in spellings]


def whole(vocabulary: int, *sequences: Sequence[int]) -> Automaton:
    return Automaton.build(phrases(*([one] for one in sequences)), Pieces.words(vocabulary))


def contains(ids: Sequence[int], phrase: Sequence[int]) -> bool:
    return any(tuple(ids[start:start + len(phrase)]) == tuple(phrase) for start in range(len(ids)))


def every_text(vocabulary: int, longest: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=longest)))


# -- the automaton -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wanted", [[(2,)], [(2,), (3,)], [(2, 3), (3,)], [(2, 2)], [(2, 3), (2, 0)], [(2, 3, 2, 2)],
                                    [(0, 2), (2, 2), (2, 0)]])
def test_it_finds_sequences_of_tokens(wanted: list[tuple[int, ...]]) -> None:
    automaton, texts = whole(4, *wanted), every_text(4, 6)
    final = automaton.final[automaton.follow(texts)].tolist()
    expected = [all(contains(text, one) for one in wanted) for text in texts.tolist()]
    assert final == expected and 0 < sum(expected) < len(expected)
    some = Automaton.build(automaton.phrases, Pieces.words(4), wanted="any")
    expected = [any(contains(text, one) for one in wanted) for text in texts.tolist()]
    assert some.final[some.follow(texts)].tolist() == expected and 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("word, spellings", [
    ("a", [(2,), (3,)]), ("ab", [(2, 4), (3, 4), (7,)]), ("b", [(5,), (4,)]), ("aab", [(2, 3, 4), (3, 3, 4)])])
def test_it_finds_words_only_where_they_are_words(word: str, spellings: list[tuple[int, ...]]) -> None:
    """In pieces that join each other: "ab" is not said by " ab" + "a", but by "-" + "ab" + "-" it is."""
    automaton = Automaton.build(phrases(spellings), pieces())
    texts = every_text(8, 5)
    usual = [tuple(one) for one in texts.tolist()]
    final = automaton.final[automaton.follow(texts)].tolist()
    expected = [word in words(text) for text in usual]
    # words that are spelled in other pieces are not looked for, and nothing else is missing
    assert all(one for one, found in zip(expected, final) if found)
    missed = [text for text, one, found in zip(usual, expected, final) if one and not found]
    assert all(not any(contains(text, one) for one in spellings) for text in missed)
    assert sum(final) > 100 and len(missed) < 0.8 * len(usual)


def test_settled_and_distance() -> None:
    automaton = Automaton.build(phrases([(2, 4), (7,)], [(5,)]), pieces())
    table = {state: set(row) for state, row in enumerate(automaton.after(torch.arange(len(automaton.final))).tolist())}
    for state, after in table.items():
        if automaton.settled[state]:
            assert after == {state}
        distance = int(automaton.distance[state])
        assert (distance == 0) == bool(automaton.final[state])
        if distance:
            assert distance == 1 + min(int(automaton.distance[one]) for one in after)
        assert set(automaton.lanes_after[state]) == {int(automaton.lane[one]) for one in after}
    assert int(automaton.distance[0]) == 2 and int(automaton.distance.max()) < FAR
    never = Automaton.build(phrases([(2,)]), Pieces.words(4), wanted="any")
    assert int(never.distance[0]) == 1


def test_mistakes() -> None:
    for spellings in ([], [()], [(2,), ()]):
        with pytest.raises(InputError, match="no tokens"):
            Phrase.of("nothing", spellings)
    for token in (4, -1):
        with pytest.raises(InputError, match=f"token {token} .* 4"):
            whole(4, (2, token))
    with pytest.raises(InputError, match="2048 states"):
        whole(30, *((token,) for token in range(2, 15)))
    with pytest.raises(InputError, match="groups=2"):
        search([Table(0)], beams=4, groups=2, required=whole(4, (2,)))


# -- the search ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("normalise", ["none", "mean", "gnmt(0.7)"])
@pytest.mark.parametrize("wanted", [[(2,)], [(3, 2)], [(2,), (3,)], [(2, 2), (3, 0)], [(0,), (2,), (3,)]])
@pytest.mark.parametrize("prompt", [(0,), (0, 3)])
def test_with_enough_beams_it_finds_the_very_best(wanted: list[tuple[int, ...]], normalise: str,
                                                  prompt: tuple[int, ...]) -> None:
    """What the prompt says is said, the begin token too."""
    changed = 0
    for seed in range(5):
        table = Table(seed)
        everything = best_of_all(table, prompt, 5, normalise)
        expected = [one for one in everything if all(contains(one.ids, phrase) for phrase in wanted)]
        found = search([table], prompt, beams=150, max_len=5, normalise=normalise, n_best=6,
                       required=whole(4, *wanted))[0]
        close(found, expected[:6])
        changed += expected[:6] != everything[:6]
    assert changed


def test_words_of_pieces_are_said_whole() -> None:
    automaton = Automaton.build(phrases([(2, 4), (7,)]), pieces())
    allowed = {(2, 4), (7,)}
    for seed in range(8):
        table = Table(seed, vocabulary=8)
        everything = best_of_all(table, (0,), 4)
        expected = [one for one in everything if any(contains(one.ids, spelling) for spelling in allowed)
                    and "ab" in words(one.ids)]
        found = search([table], beams=400, max_len=4, n_best=5, required=automaton)[0]
        assert {one.ids for one in found} <= {one.ids for one in expected}
        close(found[:1], expected[:1])


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("wanted", [[(2,)], [(3, 2)], [(2,), (3,)], [(4, 2, 3), (0,)]])
def test_with_few_beams_words_are_always_said(wanted: list[tuple[int, ...]], beams: int) -> None:
    """However unlikely they are, and no later than there is room for them."""
    for seed in range(10):
        table = Table(seed, vocabulary=5, ends=3.0)
        for max_len in (sum(map(len, wanted)), 6):
            best = search([table], beams=beams, max_len=max_len, required=whole(5, *wanted))[0][0]
            assert all(contains(best.ids, phrase) for phrase in wanted)
            assert best.logprob == pytest.approx(table.logprob(best.ids, 1), abs=1e-9)


def lanes(table: Table, automaton: Automaton, beams: int, max_len: int, normalise: str) -> list:
    """Beams for every part of what is wanted, in plain Python, never stopped early."""
    finished, opened = [], [((0,), 0.0)]
    state = {(0,): int(automaton.follow(torch.tensor([[0]])))}
    for length in range(1, max_len + 1):
        parts: dict[int, list] = {}
        for ids, total in opened:
            after = automaton.after(torch.tensor(state[ids])).tolist()
            for token in range(table.vocabulary):
                to = after[token]
                if automaton.distance[to] > max_len - length or (token == EOS and not automaton.final[to]):
                    continue
                parts.setdefault(int(automaton.lane[to]), []).append(((*ids, token), total + float(table[ids][token])))
                state[(*ids, token)] = to
        opened = []
        for _, candidates in sorted(parts.items()):
            candidates.sort(key=lambda one: -one[1])
            looked_at = candidates[:2 * beams if beams > 1 else 1]
            finished += [scored(*one, length, normalise) for one in looked_at[:beams] if one[0][-1] == EOS]
            opened += [one for one in looked_at if one[0][-1] != EOS][:beams]
    finished += [scored(*one, max_len, normalise) for one in opened if automaton.final[state[one[0]]]]
    return sorted(finished, key=lambda one: -one.score)


@pytest.mark.parametrize("normalise", ["none", "mean", "gnmt(0.7)"])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_equal_to_a_search_that_never_stops(beams: int, normalise: str) -> None:
    early = 0
    for seed in range(8):
        table, automaton = Table(seed, vocabulary=5, sharp=2.5, ends=2.0), whole(5, (2,), (4, 3))
        expected = lanes(table, automaton, beams, 7, normalise)
        for n_best in {1, beams}:
            steps = TableSteps([table])
            found = beam_search(steps, torch.tensor([[0]]), eos_id=EOS, beams=beams, max_len=7, normalise=normalise,
                                n_best=n_best, required=automaton)[0]
            close(found, expected[:n_best])
            early += len(steps.rows) < 7
            assert max(steps.rows) <= beams * len(set(automaton.lane.tolist()))
    assert early


def test_a_batch_equals_one_by_one() -> None:
    tables = [Table(seed, vocabulary=6, sharp=3.0) for seed in range(10)]
    options = {"beams": 2, "max_len": 8, "n_best": 2, "required": whole(6, (2,), (5, 3))}
    for table, found in zip(tables, search(tables, **options)):
        close(found, search([table], **options)[0])


def test_with_other_constraints() -> None:
    wishes = [NoRepeatNgram(1, EOS), MinLength(4, 1, EOS), Suppress((4,))]
    for seed in range(10):
        table = Table(seed, vocabulary=6)
        for one in search([table], beams=3, max_len=5, n_best=3, required=whole(6, (2,), (5, 3)),
                          constraints=wishes)[0]:
            assert contains(one.ids, (5, 3)) and 2 in one.ids and 4 not in one.ids and len(one.ids) >= 5
            assert len(set(one.ids)) == len(one.ids)
    with pytest.raises(InputError, match=r"image 0 .*\(4,\).*Suppress"):
        search([Table(0, vocabulary=6)], beams=3, max_len=5, required=whole(6, (4,)), constraints=[Suppress((4,))])


def test_no_room_for_the_words() -> None:
    with pytest.raises(InputError, match="image 0"):
        search([Table(0)], beams=3, max_len=2, required=whole(4, (2, 3, 2)))
