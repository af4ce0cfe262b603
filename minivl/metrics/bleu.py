"""BLEU-1 to BLEU-4: which share of a caption's n-grams people used too.

Papineni, Roukos, Ward, Zhu: BLEU, a Method for Automatic Evaluation of Machine Translation (ACL 2002). The numbers are
those of the COCO caption evaluation (pycocoevalcap) on the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .ngrams import hold
from .score import Scores
from .tokens import Tokenize, Words, candidate_words, check_ids, reference_words, tokenizer

ORDERS = 4
TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's: added to counts found, and to counts they are divided by


def bleu(candidates: Mapping[Any, str], references: Mapping[Any, Sequence[str]], *,
         tokenize: str | Tokenize = "ptb-coco") -> Scores:
    """Score captions against references.

    BLEU-k is the geometric mean of the precisions of the orders 1 to k, where an n-gram counts no more often than one
    reference has it, times ``exp(1 - r / c)`` where c, the length of the candidates, is below r, the sum over the
    images of the length of the reference that is closest to the candidate's (of two, the shorter).

    The score of a set is that of the summed counts, no mean of the images'. The score of a single image is rough:
    without a single n-gram of four words in common BLEU-4 is next to 0.

    Args:
        candidates: id -> caption. An empty caption is allowed and scores 0.
        references: id -> captions, the same ids.
        tokenize: as in `minivl.metrics.cider.cider`.

    Returns:
        Four scores, 0 to 1, of the set and per id; the signature ``"bleu|n4|ref:closest|tok:ptb-coco|v1"``.

    Raises:
        InputError: no candidates; ids only on one side; an image without references or without a token in them; a
            caption that is no string; an unknown tokenizer.
    """
    check_ids(candidates, references, "bleu")
    split = tokenizer(tokenize, "bleu")
    texts, told = reference_words(references, split, "bleu")
    place = {id: image for image, id in enumerate(texts.ids)}
    image = np.fromiter((place[id] for id in candidates), np.int64, len(candidates))  # (B,)
    said = candidate_words(candidates, split, "bleu")
    correct = _correct(said, image, told, texts.image())  # (B, 4)
    guessed = np.maximum(said.lengths[:, None] - np.arange(ORDERS), 0)  # (B, 4)
    closest = _closest(said.lengths, image, told.lengths, np.asarray(texts.counts))  # (B,)
    per_item = _bleu(correct, guessed, said.lengths, closest)
    total = _bleu(*(counts.sum(axis=0, keepdims=True) for counts in (correct, guessed, said.lengths, closest)))
    return Scores(tuple(total[0].tolist()), dict(zip(candidates, map(tuple, per_item.tolist()))),
                  f"bleu|n{ORDERS}|ref:closest|tok:{split.name}|v1")


def _correct(said: Words, image: np.ndarray, told: Words, root: np.ndarray) -> np.ndarray:
    """(B, 4) how many n-grams of each candidate its references have, each no more often than one of them."""
    theirs, held = hold(told, root, ORDERS)
    ours, own = hold(said, np.arange(len(image)), ORDERS)
    found = np.zeros((len(image), ORDERS))
    for order, there in enumerate(ours.numbers_in(theirs, image)):
        most = np.append(np.maximum.reduceat(held[order].times, held[order].start[:-1])
                         if len(held[order].times) else held[order].times, 0)  # -1, not there, is the last: 0
        found[:, order] = np.bincount(own[order].caption, np.minimum(own[order].times, most[there]), len(image))
    return found


def _closest(lengths: np.ndarray, image: np.ndarray, theirs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(B,) of the lengths of an image's references the one closest to the candidate's, of two the shorter."""
    of_image = np.empty(len(counts), np.int64)
    of_image[image] = lengths
    apart = np.abs(theirs - np.repeat(of_image, counts))
    size = int(theirs.max()) + 1
    return np.minimum.reduceat(apart * size + theirs, np.cumsum(counts) - counts)[image] % size


def _bleu(correct: np.ndarray, guessed: np.ndarray, length: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """(B, 4) from counts (B, 4) and lengths (B,)."""
    precision = np.cumprod((correct + TINY) / (guessed + SMALL), axis=1)
    ratio = (length + TINY) / (closest + SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0.0))
    return precision ** (1 / np.arange(1, ORDERS + 1)) * brevity[:, None]
