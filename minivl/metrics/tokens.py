"""Captions as people give them, checked, split into tokens and numbered: the same rules for every metric."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, some
from . import ptb

Tokenize = Callable[[str], Sequence[str]]

TOGETHER = 256  # captions whose tokens are there at a time: so few that the garbage collector does not wake up


def simple(text: str) -> list[str]:
    """The tokens named "simple": lower case, runs of ``[a-z0-9']``; all else separates."""
    return re.findall(r"[a-z0-9']+", text.lower())


@dataclass(frozen=True)
class Tokenizer:
    """A way to split captions, and what it is called.

    Attributes:
        name: stands for the tokens in signatures.
        split: text -> tokens.
    """

    name: str
    split: Tokenize

    def batches(self, texts: Sequence[str]) -> Iterator[list[Sequence[str]]]:
        """The tokens of all texts, some hundred texts at a time."""
        for start in range(0, len(texts), TOGETHER):
            yield [self.split(text) for text in texts[start:start + TOGETHER]]


NAMED: dict[str, Tokenize] = {"ptb-coco": ptb.coco, "ptb-clean": ptb.clean, "simple": simple}


def tokenizer(tokenize: str | Tokenize, source: str) -> Tokenizer:
    """What is meant by the argument ``tokenize`` of a metric.

    Args:
        tokenize: a name of `NAMED`, or a function, text -> tokens, with a ``__name__`` or an attribute ``name``.
        source: who asks, for errors.

    Raises:
        InputError: an unknown name, or a function without a name of its own.
    """
    if isinstance(tokenize, str) and tokenize in NAMED:
        return Tokenizer(tokenize, NAMED[tokenize])
    if not callable(tokenize):
        raise InputError(f"tokenize={tokenize!r} is unknown; give {', '.join(map(repr, NAMED))} or a function",
                         source=source)
    for name, split in (*NAMED.items(), ("ptb-coco", ptb.tokenize)):
        if tokenize is split:
            return Tokenizer(name, NAMED[name])
    own: Any = getattr(tokenize, "name", None) or getattr(tokenize, "__name__", "")
    if not is_label(own) or own in ("", "<lambda>", *NAMED):
        raise InputError("the function given as tokenize= needs a name of its own for the signature (its "
                         "__name__ or an attribute 'name')", source=source)
    return Tokenizer(own, tokenize)


def is_label(name: Any) -> bool:
    """Whether a signature can hold it: printable text without its separator."""
    return isinstance(name, str) and name.isprintable() and "|" not in name


class Words(NamedTuple):
    """Captions as numbers of words.

    Attributes:
        words: the V different words, in alphabetical order.
        ids: (W,) the numbers of all words, caption after caption.
        lengths: (C,) words of each caption.
    """

    words: list[str]
    ids: np.ndarray
    lengths: np.ndarray


class _Index(dict[str, int]):
    """Numbers words in the order in which they are first asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def encode(batches: Iterable[Sequence[Sequence[str]]], *, whole: bool = False) -> Words:
    """Number the words of captions.

    Args:
        batches: of captions, each a list of tokens; only one batch is looked at at a time.
        whole: a token with white space inside, such as "22 3/4" (with a no-break space), is one word. Else it is as
            many words as it has parts, as in pycocoevalcap, which joins tokens with spaces and, but for ROUGE, splits
            the text anew at white space of any kind.

    Raises:
        InputError: a caption is no list of tokens, or a token is no string.
    """
    index = _Index()
    ids, lengths = [], []
    for captions in batches:
        for kind in set(map(type, captions)):
            if issubclass(kind, (str, bytes)) or not issubclass(kind, Sequence):
                raise InputError(f"the tokens of a caption are a {kind.__name__}, a list of strings is needed")
        counts = np.fromiter(map(len, captions), np.int64, len(captions))
        ids.append(np.fromiter(map(index.__getitem__, chain.from_iterable(captions)), np.int32, int(counts.sum())))
        lengths.append(counts)
    if wrong := sorted({type(word).__name__ for word in index if not isinstance(word, str)}):
        raise InputError(f"tokens are of type {some(wrong)}, strings are needed")
    numbers, counts = joined(ids), joined(lengths)
    if not whole and len(" ".join(index).split()) != len(index):
        index, numbers, counts = _in_parts(index, numbers, counts)
    words = sorted(index)
    place = np.empty(len(words), np.int32)
    place[np.fromiter(map(index.__getitem__, words), np.int64, len(words))] = np.arange(len(words))
    return Words(words, place[numbers], counts)


def _in_parts(tokens: Iterable[str], numbers: np.ndarray,
              lengths: np.ndarray) -> tuple[_Index, np.ndarray, np.ndarray]:
    """The same captions with the parts of their tokens for words."""
    index = _Index()
    parts = [[index[part] for part in token.split()] for token in tokens]
    counts = np.array([len(one) for one in parts])  # (V,)
    flat = np.fromiter(chain.from_iterable(parts), np.int64, int(counts.sum()))
    more = counts[numbers]  # (W,) parts of each token
    begin = (np.cumsum(counts) - counts)[numbers] - (np.cumsum(more) - more)
    caption = np.repeat(np.arange(len(lengths)), lengths)
    return (index, flat[np.arange(int(more.sum())) + np.repeat(begin, more)],
            np.bincount(caption, more, len(lengths)).astype(np.int64))


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One array of the parts, of which there may be none."""
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@dataclass(frozen=True)
class ReferenceTexts:
    """The references of a set of images, one after the other.

    Attributes:
        ids: the I images.
        counts: (I), how many references each has.
        texts: all of them, image by image.
    """

    ids: list[Any]
    counts: list[int]
    texts: list[str]

    def image(self) -> np.ndarray:
        """(texts,) of which image each is: 0 to I-1."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def reference_texts(references: Mapping[Any, Sequence[str]], source: str) -> ReferenceTexts:
    """The references of all images.

    Raises:
        InputError: references that are no list, none at all, one that is no string or empty; it names the image.
    """
    ids, counts = [], []
    texts: list[str] = []
    for id, captions in references.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise InputError(f"the references of {id!r} are a {type(captions).__name__}, a list of strings "
                             "is needed", source=source)
        if not captions:
            raise InputError(f"{id!r} has no references", source=source)
        for index, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise InputError(f"reference {index} of {id!r} is a {type(caption).__name__}, a string is "
                                 "needed", source=source)
            if not caption or caption.isspace():
                raise InputError(f"reference {index} of {id!r} is empty", source=source)
        ids.append(id)
        counts.append(len(captions))
        texts.extend(captions)
    return ReferenceTexts(ids, counts, texts)


def reference_words(references: Mapping[Any, Sequence[str]], split: Tokenizer,
                    source: str) -> tuple[ReferenceTexts, Words]:
    """The references of all images, and their words.

    Raises:
        InputError: as `reference_texts` and `encode`; an image has no token in its references.
    """
    texts = reference_texts(references, source)
    words = encode(split.batches(texts.texts))
    check_tokens(texts, words.lengths, split.name, source)
    return texts, words


def check_tokens(references: ReferenceTexts, lengths: np.ndarray, tokens: str, source: str) -> None:
    """Each image must have a token in at least one of its references.

    Args:
        references: of I images.
        lengths: (texts,) the number of tokens of each reference.
        tokens: the name of the tokens.
        source: who asks, for errors.

    Raises:
        InputError: an image has none, as of captions in another script, all of which would score 0.
    """
    first = np.cumsum([0, *references.counts[:-1]])  # (I,)
    silent = np.flatnonzero(np.add.reduceat(lengths, first) == 0) if len(lengths) else ()
    for image in silent[:1]:
        raise InputError(f"the references of {references.ids[image]!r} have no {tokens!r} token, such as "
                         f"{references.texts[first[image]]!r:.80}", source=source)


def check_candidate(id: Any, caption: Any, source: str) -> None:
    """An empty one is allowed.

    Raises:
        InputError: the caption is no string.
    """
    if not isinstance(caption, str):
        raise InputError(f"the candidate of {id!r} is a {type(caption).__name__}, a string is needed", source=source)


def candidate_words(candidates: Mapping[Any, str], split: Tokenizer, source: str) -> Words:
    """The words of candidates, in their order.

    Raises:
        InputError: as `check_candidate` and `encode`.
    """
    for id, caption in candidates.items():
        check_candidate(id, caption, source)
    return encode(split.batches(list(candidates.values())))


def check_ids(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]], source: str) -> None:
    """Both must be of the same images.

    Raises:
        InputError: there are no candidates, or ids on one side only.
    """
    if not candidates:
        raise InputError("there are no candidates", source=source)
    for one, other, what in ((candidates, references, "have a candidate but no references"),
                             (references, candidates, "have references but no candidate")):
        lone = [repr(id) for id in one if id not in other]
        if lone:
            raise InputError(f"{len(lone)} ids {what}: {some(lone, 5)}", source=source)
