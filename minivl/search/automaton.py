"""A finite-state automaton over tokens that knows which phrases have been said.

Anderson et al. 2017 (Guided open vocabulary image captioning with constrained beam search) keep beams for every state
of such an automaton. This one is built from the phrases and from what the pieces of a tokenizer do to words, so that a
word counts only where it stands as a word.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

MOST_STATES = 2048  # every phrase that must be said doubles them, and beams are kept for each
FAR = 1 << 30  # tokens, to where no token leads
OTHER = -1  # any token that no phrase has


@dataclass(frozen=True)
class Phrase:
    """The ways in which one thing can be said: a graph whose edges are tokens.

    Attributes:
        name: what it is called in messages.
        edges: for each node, token -> next nodes. Node 0 is where it begins.
        last: the node where it has been said.
    """

    name: str
    edges: tuple[Mapping[int, tuple[int, ...]], ...]
    last: int = 1

    @classmethod
    def of(cls, name: str, spellings: Sequence[Sequence[int]]) -> Phrase:
        """Said by any of these sequences of tokens.

        Raises:
            InputError: no spelling, or one without tokens.
        """
        if not spellings or not all(len(spelling) for spelling in spellings):
            raise InputError(f"{name!r} consists of no tokens at all")
        edges: list[dict[int, tuple[int, ...]]] = [{}, {}]  # where it begins, where every spelling ends
        for spelling in spellings:
            node = 0
            for token in spelling[:-1]:
                edges[node][token] = (*edges[node].get(token, ()), len(edges))
                node = len(edges)
                edges.append({})
            edges[node][spelling[-1]] = (*edges[node].get(spelling[-1], ()), 1)
        return cls(name, tuple(edges))


class Pieces(NamedTuple):
    """What the pieces of a tokenizer do to words, (V,) booleans.

    Attributes:
        joins: the piece goes on with the word before it, if that is open.
        holds: the word that it stands in stays open to what joins.
        marks: it is nothing but punctuation, which at the edge of a word is no part of it.
    """

    joins: Tensor
    holds: Tensor
    marks: Tensor

    @classmethod
    def words(cls, vocabulary: int) -> Pieces:
        """Every token is a word."""
        nothing = torch.zeros(vocabulary, dtype=torch.bool)
        return cls(nothing, nothing, nothing)


class _Kind(NamedTuple):
    """Of one piece: see `Pieces`."""

    joins: bool
    holds: bool
    marks: bool


class _State(NamedTuple):
    """What of a text matters: phrases that were said, places in others, and the word that is being written.

    `word` is "" where the next piece begins a word, "marks" where only punctuation stands in the present one (so
    that a phrase may begin behind it), else "letters".
    """

    said: frozenset[int]
    places: frozenset[tuple[int, int]]
    word: str


class Automaton:
    """The states of a text with regard to some phrases; made by `build`. The state of an empty text is 0.

    Attributes:
        phrases: what it looks for.
        final: (S,) whether what is wanted is met if the text ends in this state.
        settled: (S,) whether it is met whatever follows.
        distance: (S,) fewest tokens to a final state, 0 in one, `FAR` where none can be reached.
        lane: (S,) numbers from 0; states of one number are as near to what is wanted, and share beams.
        lanes_after: for each state, the lanes that one more token may lead to.
    """

    def __init__(self, phrases: Sequence[Phrase], table: Tensor, column: Tensor, final: Tensor, settled: Tensor,
                 lane: Tensor) -> None:
        self.phrases = tuple(phrases)
        self.final, self.settled, self.lane = final, settled, lane
        self.distance = _distances(table, final)
        self.lanes_after = [tuple(sorted(set(row))) for row in lane[table].tolist()]
        self._table, self._column = table, column  # (S, C) next state; (V,) the column of each token

    @classmethod
    def build(cls, phrases: Sequence[Phrase], pieces: Pieces, *, wanted: str = "all") -> Automaton:
        """The automaton of some phrases.

        Args:
            phrases: at least one.
            pieces: of the tokenizer, (V,) each.
            wanted: "all": every phrase, as whole words (a piece that joins the last one undoes it); "any": one of
                them, and what may join it does not matter.

        Raises:
            InputError: a token out of the vocabulary, or more than `MOST_STATES` states where all phrases are wanted.
        """
        vocabulary = len(pieces.joins)
        named = sorted({token for phrase in phrases for edges in phrase.edges for token in edges})
        wrong = [token for token in named if not 0 <= token < vocabulary]
        if wrong:
            raise InputError(f"token {wrong[0]} is outside the vocabulary of {vocabulary}")
        kinds = torch.stack(list(pieces), 1).long() @ torch.tensor([4, 2, 1])  # (V,) 0 to 7
        column = kinds.clone()  # tokens that no phrase has are alike if they are of one kind
        column[named] = torch.arange(len(named)) + 8
        walk = _Walk(phrases, named, kinds[named].tolist(), wanted, bool(pieces.joins.any()))
        states = walk.states
        everything = frozenset(range(len(phrases)))
        final = [state.said == everything if wanted == "any" else
                 state.said | {k for k, node in state.places if node == phrases[k].last} == everything
                 for state in states]
        lanes: dict[tuple[object, object], int] = {}
        lane = [lanes.setdefault((state.said, state.places), len(lanes)) for state in states]
        settled = [state.said == everything for state in states]
        return cls(phrases, torch.tensor(walk.table), column, torch.tensor(final), torch.tensor(settled),
                   torch.tensor(lane))

    def to(self, device: torch.device) -> Automaton:
        """A copy there."""
        there = copy.copy(self)
        for name in ("final", "settled", "distance", "lane", "_table", "_column"):
            setattr(there, name, getattr(self, name).to(device))
        return there

    def follow(self, ids: Tensor) -> Tensor:
        """The states (N,) of texts (N, T)."""
        states = ids.new_zeros(ids.shape[0])
        for columns in self._column[ids].unbind(1):
            states = self._table[states, columns]
        return states

    def after(self, states: Tensor) -> Tensor:
        """The states (..., V) that every token would lead to from states (...)."""
        return self._table[states][..., self._column]


def _distances(table: Tensor, final: Tensor) -> Tensor:
    """(S,) fewest tokens from each state to a final one."""
    nearest, known = torch.where(final, 0, FAR), None
    while known is None or not torch.equal(nearest, known):
        known, nearest = nearest, torch.minimum(nearest, nearest[table].amin(1) + 1)
    return nearest.clamp(max=FAR)


class _Walk:
    """All states that can be reached, and where tokens lead from them.

    Attributes:
        states: in the order in which they were reached.
        table: for each state the next ones, by column: eight kinds of tokens that no phrase has, then the others.
    """

    def __init__(self, phrases: Sequence[Phrase], tokens: Sequence[int], kinds: Sequence[int], wanted: str,
                 open_words: bool) -> None:
        self._phrases, self._wanted, self._open_words = phrases, wanted, open_words
        self._everything = frozenset(range(len(phrases)))
        self._first: dict[int, list[tuple[int, int]]] = {}  # token -> (phrase, node) where one begins with it
        for k, phrase in enumerate(phrases):
            for token, nodes in phrase.edges[0].items():
                self._first.setdefault(token, []).extend((k, node) for node in nodes)
        plain = [(OTHER, self._kind(code)) for code in range(8)]
        columns = [*plain, *((token, self._kind(code)) for token, code in zip(tokens, kinds))]
        place = {token: index for index, (token, _) in enumerate(columns)}
        numbers = {_State(frozenset(), frozenset(), ""): 0}
        self.states = list(numbers)
        self.table: list[list[int]] = []
        for state in self.states:  # which grows meanwhile
            near = set(self._first).union(*(phrases[k].edges[node] for k, node in state.places))
            others = [self._number(self._step(state, *one), numbers) for one in plain]
            row = others + [others[code] for code in kinds]
            for token in near:
                row[place[token]] = self._number(self._step(state, *columns[place[token]]), numbers)
            self.table.append(row)
            if wanted == "all" and len(self.states) > MOST_STATES:
                raise InputError(f"to say all of {', '.join(repr(phrase.name) for phrase in phrases)} takes more than "
                                 f"{MOST_STATES} states, and beams for each: ask for fewer words")

    def _kind(self, code: int) -> _Kind:
        return _Kind(bool(code & 4), bool(code & 2) and self._open_words, bool(code & 1))

    def _number(self, state: _State, numbers: dict[_State, int]) -> int:
        if state not in numbers:
            numbers[state] = len(self.states)
            self.states.append(state)
        return numbers[state]

    def _step(self, state: _State, token: int, kind: _Kind) -> _State:
        """Where a token leads; `OTHER` stands for any of its kind that no phrase has."""
        if state.said == self._everything:
            return state
        begins = not kind.joins or state.word == ""
        opens = begins or state.word == "marks"  # a phrase may begin here
        said, reached = set(state.said), set()
        for k, node in state.places:
            if node != self._phrases[k].last:
                reached |= {(k, to) for to in self._phrases[k].edges[node].get(token, ())}
            elif begins:
                said.add(k)
            elif kind.marks:
                reached.add((k, node))
        if opens:
            reached.update(self._first.get(token, ()))
        if self._wanted == "any" or not kind.holds:  # nothing can join any more, or it does not matter
            said |= {k for k, node in reached if node == self._phrases[k].last}
        if said == self._everything or (said and self._wanted == "any"):
            return _State(self._everything, frozenset(), "")
        word = "" if not kind.holds else "marks" if kind.marks and opens else "letters"
        return _State(frozenset(said), frozenset(place for place in reached if place[0] not in said), word)
