"""ROUGE-L: the longest common subsequence of a caption and what people wrote.

Lin: ROUGE, a Package for Automatic Evaluation of Summaries (ACL workshop, 2004). The numbers are those of the COCO
caption evaluation (pycocoevalcap) on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .score import Score
from .tokens import Tokenize, check_candidate, check_ids, check_tokens, encode, reference_texts, tokenizer

BETA = 1.2  # recall weighs beta^2 as much as precision


def rouge(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]], *,
          tokenize: str | Tokenize = "ptb-coco") -> Score:
    """Score captions against references.

    With l the length of the longest common subsequence, the precision ``l / words of the candidate`` and the recall
    ``l / words of the reference`` are each the largest over the references, and the score is their F-measure
    ``(1 + beta^2) P R / (R + beta^2 P)``, beta 1.2.

    Args:
        candidates: id -> caption. An empty caption is allowed and scores 0.
        references: id -> captions, the same ids.
        tokenize: as in `minivl.metrics.cider.cider`.

    Returns:
        The mean, 0 to 1, the score per id and the signature ``"rouge-l|beta1.2|tok:ptb-coco|v1"``.

    Raises:
        InputError: no candidates; ids only on one side; an image without references or without a token in them; a
            caption that is no string; an unknown tokenizer.
    """
    check_ids(candidates, references, "rouge")
    split = tokenizer(tokenize, "rouge")
    texts = reference_texts(references, "rouge")
    for id, caption in candidates.items():
        check_candidate(id, caption, "rouge")
    # encoded together, so that equal words have equal numbers
    batches = chain(split.batches(texts.texts), split.batches(list(candidates.values())))
    words = encode(batches, whole=True)
    check_tokens(texts, words.lengths[:len(texts.texts)], split.name, "rouge")
    ends, flat = np.cumsum(words.lengths).tolist(), words.ids.tolist()
    captions = [flat[begin:end] for begin, end in zip([0, *ends], ends)]
    begin = (np.cumsum(texts.counts) - texts.counts).tolist()
    told = {id: captions[first:first + count] for id, first, count in zip(texts.ids, begin, texts.counts)}
    per_item = {id: _score(said, told[id]) for id, said in zip(candidates, captions[len(texts.texts):])}
    return Score(math.fsum(per_item.values()) / len(per_item), per_item, f"rouge-l|beta{BETA}|tok:{split.name}|v1")


def _score(said: list[int], told: list[list[int]]) -> float:
    """The F-measure of a caption; 0 where it has no words or none of the references'."""
    if not said:
        return 0.0
    places: dict[int, int] = {}  # where each word is, as bits
    for place, word in enumerate(said):
        places[word] = places.get(word, 0) | 1 << place
    common = [_common(places, len(said), reference) for reference in told]
    precision = max(common) / len(said)
    recall = max(length / max(len(reference), 1) for length, reference in zip(common, told))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(places: Mapping[int, int], length: int, other: Sequence[int]) -> int:
    """The length of the longest common subsequence, a row of its table at a time as the bits of one number.

    Hyyrö: Bit-Parallel LCS-length Computation Revisited (AWOCA 2004).

    Args:
        places: word -> where it is in the one caption, as bits.
        length: words of that caption.
        other: the other caption.
    """
    every = row = (1 << length) - 1  # a bit is 0 where the table rises
    for word in other:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & every
    return length - row.bit_count()
