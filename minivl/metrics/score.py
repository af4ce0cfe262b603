"""What a metric returns: a number, one per image, and a signature that says what the number is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Score:
    """One number for a set of captions.

    Attributes:
        score: over all images.
        per_item: id -> score, in the order of the candidates.
        signature: all that must be equal for two scores to be comparable, such as
            ``"cider-d|n4|s6.0|df:corpus(1000)|tok:ptb-coco|v1"``.
    """

    score: float
    per_item: dict[Any, float]
    signature: str


@dataclass(frozen=True)
class Scores:
    """Several numbers for a set of captions (BLEU-1 to BLEU-4).

    Attributes:
        scores: over all images.
        per_item: id -> scores, in the order of the candidates.
        signature: as of `Score`.
    """

    scores: tuple[float, ...]
    per_item: dict[Any, tuple[float, ...]]
    signature: str


def same_signature(a: Score | Scores, b: Score | Scores) -> str:
    """The signature of both.

    Raises:
        InputError: they differ, so that the two numbers cannot be compared.
    """
    if a.signature != b.signature:
        raise InputError(f"scores of different signatures cannot be compared: {a.signature} and {b.signature}")
    return a.signature
