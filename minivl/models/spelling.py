"""How words are spelled in the pieces of a tokenizer, for captions that must or must not say them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch

from ..errors import InputError
from ..search import Phrase, Pieces
from ..text.tokenizer import Tokenizer

TRIED = 200  # pieces by which the one is found that others join


class Spelling(NamedTuple):
    """What every piece of a tokenizer writes.

    Attributes:
        texts: id -> its letters, case-folded, without the space around them; special tokens have none.
        ids: the same the other way round.
        pieces: what each does to words.
        sample: a text of letters only.
    """

    texts: Mapping[int, str]
    ids: Mapping[str, tuple[int, ...]]
    pieces: Pieces
    sample: str


@lru_cache(maxsize=4)
def spelling(tokenizer: Tokenizer) -> Spelling:
    """What the pieces of a tokenizer write, found out by decoding each behind, and in front of, a piece of letters.

    A word is what `Tokenizer.words` calls one: what white space separates, without the punctuation at its edges.
    """
    alone = {id: text for id in range(tokenizer.vocab_size)
             if id not in tokenizer.specials and (text := _text(tokenizer, id)) is not None}
    letters = [id for id, text in alone.items() if text.strip().isalpha()]
    pieces = Pieces(*(torch.zeros(tokenizer.vocab_size, dtype=torch.bool) for _ in range(3)))
    texts = {id: text.strip().casefold() for id, text in alone.items()}
    tried = list(alone)[::max(1, len(alone) // TRIED)]
    # CLIP has pieces that end a word, which nothing joins: take one that the most pieces join
    behind = max(letters[:TRIED:10], default=-1, key=lambda a: sum(_rest(tokenizer, a, t, alone)[0] for t in tried))
    rests = {id: _rest(tokenizer, behind, id, alone) for id in alone} if letters else {}
    joining = next((id for id, (joins, text) in rests.items() if joins and text.isalpha()), None)
    if joining is not None:
        for id, (joins, text) in rests.items():
            pieces.joins[id], texts[id] = joins, text.strip().casefold()
            pieces.holds[id] = _rest(tokenizer, id, joining, alone)[0]
    ids: dict[str, tuple[int, ...]] = {}
    for id, text in texts.items():
        pieces.marks[id] = all(unicodedata.category(letter).startswith("P") for letter in text)
        ids[text] = (*ids.get(text, ()), id)
    return Spelling(texts, ids, pieces, texts[letters[0]] if letters else "a")


def _text(tokenizer: Tokenizer, *ids: int) -> str | None:
    try:
        return tokenizer.decode(ids)
    except InputError:  # ids may have holes
        return None


def _rest(tokenizer: Tokenizer, first: int, second: int, alone: Mapping[int, str]) -> tuple[bool, str]:
    """Whether the second piece goes on with the word that the first one stands in, and what it writes there."""
    both = _text(tokenizer, first, second) or ""
    rest = both[len(alone[first]):]
    if not both.startswith(alone[first]) or not rest:
        return False, alone[second]
    return not rest[0].isspace(), rest


def usual_spellings(tokenizer: Tokenizer, text: str) -> list[tuple[int, ...]]:
    """The pieces that the tokenizer makes of a text at the beginning of a caption and inside it.

    Raises:
        InputError: a word of it is not in the vocabulary.
    """
    words = text.split()
    for word in words:
        ids = tokenizer.encode(word)
        if not ids or tokenizer.unk_id in ids:
            raise InputError(f"the word {word!r} is not in the vocabulary of {tokenizer.source}")
    before = spelling(tokenizer).sample
    start, inside = tokenizer.encode(before), tokenizer.encode(f"{before} {' '.join(words)}")
    found = [tuple(tokenizer.encode(" ".join(words)))]
    if inside[:len(start)] == start:
        found.append(tuple(inside[len(start):]))
    return [one for one in dict.fromkeys(found) if one and tokenizer.unk_id not in one]


def any_spelling(tokenizer: Tokenizer, text: str) -> Phrase | None:
    """Every way in which pieces can write a text, in any case of letters; None where none can.

    A model that may not say a word in the pieces it has learned would else say it in others.
    """
    known, ids = spelling(tokenizer), tokenizer.encode(text)
    if ids and tokenizer.unk_id not in ids:
        text = tokenizer.decode(ids)  # as captions have it: without accents, say, and without what is never said
    wanted = " ".join(text.split()).casefold()
    numbers = {(0, False): 0}  # (letters written, whether the last piece can be joined) -> node
    edges: list[dict[int, tuple[int, ...]]] = [{}, {}]
    for place, held in (todo := [(0, False)]):  # which grows meanwhile
        for stop, id, goes_on in _next(known, wanted, place):
            if place and goes_on != (held and bool(known.pieces.joins[id])):
                continue
            node = (stop, bool(known.pieces.holds[id]))
            if stop == len(wanted):
                numbers[node] = 1
            elif node not in numbers:
                numbers[node] = len(edges)
                edges.append({})
                todo.append(node)
            here = edges[numbers[place, held]]
            here[id] = (*here.get(id, ()), numbers[node])
    useful: set[int] = set()  # nodes from where the end can be reached
    more = {1}
    while more - useful:
        useful |= more
        more = {node for node, ways in enumerate(edges) if any(useful.intersection(to) for to in ways.values())}
    kept = [{id: to for id, to in ways.items() if useful.intersection(to)} for ways in edges]
    return Phrase(text, tuple(kept)) if 0 in useful else None


def _next(known: Spelling, wanted: str, place: int) -> Iterator[tuple[int, int, bool]]:
    """(end, piece, whether it must go on with a word) of the pieces that write what stands at a place."""
    goes_on = wanted[place] != " "
    first = place if goes_on else place + 1
    for stop in range(first + 1, len(wanted) + 1):
        yield from ((stop, id, goes_on) for id in known.ids.get(wanted[first:stop], ()))
