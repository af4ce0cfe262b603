"""How varied captions are: a captioner that says "a man on a street" of every picture scores well and tells little."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import InputError
from .tokens import Tokenize, Tokenizer, check_candidate, reference_texts, tokenizer


@dataclass(frozen=True)
class Diversity:
    """What `distinct` returns.

    Attributes:
        distinct_1: different words per word said, 0 to 1.
        distinct_2: different pairs of neighbouring words per word said, 0 to 1.
        captions: how many there are.
        different: how many different ones (as tokens: a capital letter makes no difference).
        vocabulary: how many different words are used.
        mean_length: words of a caption.
        novel: share of the captions that no training caption is equal to (as tokens), 0 to 1; None without training
            captions.
        signature: all that must be equal for two results to be comparable: as more captions repeat more, their number
            belongs to it. That of `novel`; see `signature_of`.
    """

    distinct_1: float
    distinct_2: float
    captions: int
    different: int
    vocabulary: int
    mean_length: float
    novel: float | None
    signature: str

    def signature_of(self, name: str) -> str:
        """The signature of one of the numbers: without the training captions where these change nothing in it."""
        return self.signature if name == "novel" else re.sub(r"\|training:[^|]*\|", "|training:none|", self.signature)


def distinct(candidates: Mapping[Any, str], training: Mapping[Any, Sequence[str]] | None = None, *,
             tokenize: str | Tokenize = "ptb-coco") -> Diversity:
    """Count what is different in a set of captions.

    Li, Galley, Brockett, Gao, Dolan: A Diversity-Promoting Objective Function for Neural Conversation Models (NAACL
    2016): distinct-1 and distinct-2 are both divided by the number of words, as there; others divide
    the second by the number of pairs.

    Args:
        candidates: id -> caption. Empty ones are captions without words.
        training: id -> captions that the captioner was trained on.
        tokenize: as in `minivl.metrics.cider.cider`.

    Returns:
        The counts; shares of no words at all are 0. The signature, e.g.
        ``"distinct|n2|per:words|captions:1000|training:1f0c22ab(29995)|tok:ptb-coco|v1"``, holds a hash of the
        different training captions and how many these are.

    Raises:
        InputError: no candidates; a caption that is no string; training captions that `cider` refuses as references,
            or none; an unknown tokenizer.
    """
    if not candidates:
        raise InputError("there are no candidates", source="distinct")
    split = tokenizer(tokenize, "distinct")
    for id, caption in candidates.items():
        check_candidate(id, caption, "distinct")
    said = _tokens(list(candidates.values()), split)
    words: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    total = 0
    for tokens in said:
        words.update(tokens)
        pairs.update(pairwise(tokens))
        total += len(tokens)
    novel, name = None, "none"
    if training is not None:
        if not training:
            raise InputError("there are no training captions", source="distinct")
        known = set(_tokens(reference_texts(training, "distinct").texts, split))
        novel, name = sum(tokens not in known for tokens in said) / len(said), f"{_digest(known)}({len(known)})"
    return Diversity(len(words) / max(total, 1), len(pairs) / max(total, 1), len(said), len(set(said)), len(words),
                     total / len(said), novel, f"distinct|n2|per:words|captions:{len(said)}|training:{name}|"
                                               f"tok:{split.name}|v1")


def _tokens(texts: list[str], split: Tokenizer) -> list[tuple[str, ...]]:
    return [tuple(caption) for batch in split.batches(texts) for caption in batch]


def _digest(captions: set[tuple[str, ...]]) -> str:
    """8 hex digits of the captions, whatever their order."""
    digest = hashlib.sha256()
    for tokens in sorted(captions):
        digest.update(json.dumps(tokens).encode())
    return digest.hexdigest()[:8]
