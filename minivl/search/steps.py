"""What a search works on, what it finds, and how findings of several lengths are ranked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..errors import InputError

NORMALISATIONS = ("none", "mean", "gnmt(alpha)")


class Steps(Protocol):
    """What a search needs of a decoding of B images with r text rows each (side by side).

    The number of rows may change from step to step, and finished images leave: a search has no other demands
    on shapes, so that a decoding may keep tensors of its own of a fixed size behind these four verbs.
    """

    def prefill(self, ids: Tensor) -> Tensor:
        """Prompts (B, T) -> log-probabilities (B, V) of the next token; one row per image from here."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """One token per row (B*r,) -> log-probabilities (B*r, V) of the next."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Row i continues what was row ``rows[i]``; may change r, never the order of images."""
        ...

    def select(self, images: Tensor) -> None:
        """Keep these images (indices into the present ones); the others are finished."""
        ...


NOT_NUMBERS = "the model gives log-probabilities that are nan: its weights are damaged, or too coarsely multiplied"


class NothingFound(InputError):
    """No sequence meets what is wished of a search.

    Args:
        message: which image, and what is wished.
        image: its place in the batch.

    Attributes:
        image: as given.
    """

    def __init__(self, message: str, image: int) -> None:
        self.image = image
        super().__init__(message)


@dataclass(frozen=True)
class Hypothesis:
    """One found sequence.

    Attributes:
        ids: the prompt and the chosen tokens; ends with <EOS> if it was chosen.
        logprob: sum of the log-probabilities that the model gives the chosen tokens, whatever was wished of the search.
        score: what hypotheses were ranked by: the same sum with the penalties of the search, normalised for length.
        logps: log-probability of each chosen token; they sum to logprob.
    """

    ids: tuple[int, ...]
    logprob: float
    score: float
    logps: tuple[float, ...] = field(default=(), compare=False)  # the same ids of one model have the same


@dataclass(frozen=True)
class Normalisation:
    """How the sum of log-probabilities becomes a score that is fair to long sequences.

    ``none`` ranks by the sum itself, ``mean`` by the mean per new token, ``gnmt(alpha)`` divides by
    ``((5 + length) / 6) ** alpha`` (Wu et al. 2016, eq. 14; they found alpha between 0.6 and 0.7 to be best).
    Length counts the new tokens and <EOS>.

    Attributes:
        name: "none", "mean" or "gnmt".
        alpha: of gnmt.
    """

    name: str
    alpha: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Normalisation:
        """The normalisation of this name: ``none``, ``mean`` or, say, ``gnmt(0.6)``.

        Raises:
            InputError: another name, or an alpha outside 0 to 10.
        """
        if text in ("none", "mean"):
            return cls(text)
        found = re.fullmatch(r"gnmt\(\s*(\d+(?:\.\d*)?|\.\d+)\s*\)", text) if isinstance(text, str) else None
        if not found or float(found[1]) > 10:
            raise InputError(f"normalise={text!r}: give one of {', '.join(NORMALISATIONS)}, with alpha from 0 to 10 "
                             "such as gnmt(0.6)")
        return cls("gnmt", float(found[1]))

    def divisor(self, length: int) -> float:
        """What the sum over `length` new tokens is divided by; it never falls as the length grows."""
        if self.name == "mean":
            return float(length)
        return ((5 + length) / 6) ** self.alpha  # none: to the power of 0
