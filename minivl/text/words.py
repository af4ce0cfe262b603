"""Which pieces of a sequence form a word, and decoders that write spaces between words."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import decoders

EDGES = r"\A[\s\x1c-\x1f]+|[\s\x1c-\x1f]+\z"
"""What `str.strip` takes from a text, as a pattern of the `tokenizers` library."""


class Word(NamedTuple):
    """One word of a sequence of ids: its text, and the positions ``[start, stop)`` of its pieces."""

    text: str
    start: int
    stop: int


def words_of(text: str, ends: Sequence[int], places: Sequence[int]) -> list[Word]:
    """The words of a decoded text, by the rules of `Tokenizer.words`.

    Args:
        text: the decoded text.
        ends: for each piece, how much of ``text`` stands once it is decoded; never falling.
        places: for each piece, its position in the sequence; rising.
    """
    words = []
    for group in _groups(text, ends, places):
        for run in _without_edges(group, text, ends):
            first = ends[run[0] - 1] if run[0] else 0
            content = text[first:ends[run[-1]]].strip()
            words.append(Word(content, places[run[0]], places[run[-1]] + 1))
    return words


def mend_word_ends(engine: tokenizers.Tokenizer) -> None:
    """Let a decoder that leaves the end-of-word mark in the text (CLIP's files) write spaces between words."""
    mark = json.loads(engine.to_str())["model"].get("end_of_word_suffix")
    vocab = engine.get_vocab()
    sample = next((vocab[token] for token in sorted(vocab) if mark and token.endswith(mark)), None)
    if sample is None or mark not in engine.decode([sample, sample]):
        return
    # `Strip` would do for the edges, but it panics on an empty text.
    engine.decoder = decoders.Sequence([
        engine.decoder or decoders.Fuse(), decoders.Fuse(), decoders.Replace(mark, " "),
        decoders.Replace(tokenizers.Regex(EDGES), "")])


def _groups(text: str, ends: Sequence[int], places: Sequence[int]) -> list[list[int]]:
    """Indices of the pieces between white space: ``[[0, 1], [2], ...]``."""
    groups: list[list[int]] = []
    pending: list[int] = []  # pieces that wrote nothing visible yet
    for index, end in enumerate(ends):
        if pending and places[index] != places[index - 1] + 1:
            pending = []
        start = ends[index - 1] if index else 0
        pending.append(index)
        if not text[start:end].strip():
            continue
        first = pending[0]
        joins = bool(groups) and groups[-1][-1] == first - 1 and places[first] == places[first - 1] + 1
        # A space may end the last visible piece, be the first the invisible ones wrote, or begin this one.
        before = ends[first - 1] if first else 0
        spaced = text[before:before + 1].isspace() or text[max(before - 1, 0):before].isspace()
        if joins and not spaced:
            groups[-1] += pending
        else:
            groups.append(pending)
        pending = []
    return groups


def _without_edges(group: list[int], text: str, ends: Sequence[int]) -> list[list[int]]:
    """A group of pieces, with pieces of nothing but punctuation at either edge apart."""
    units: list[list[int]] = [[]]  # what cannot be cut: a visible piece and the invisible ones before it
    marks: list[bool] = []
    for index in group:
        units[-1].append(index)
        content = text[ends[index - 1] if index else 0:ends[index]].strip()
        if content:
            marks.append(all(unicodedata.category(letter).startswith("P") for letter in content))
            units.append([])
    if all(marks):
        return [group]
    left = marks.index(False)
    right = len(marks) - marks[::-1].index(False)
    parts = (units[:left], units[left:right], units[right:-1])
    return [[index for unit in part for index in unit] for part in parts if part]
