"""What may be said next: small objects that change the log-probabilities of the next token.

Each is called with the ids so far (N, T), prompt included, the log-probabilities (N, V) of the next token and the
number of tokens that may still come, this one counted; it returns the changed log-probabilities, -inf for what may
not be said, and leaves its arguments as they are. Any function of this form is one, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from .automaton import Automaton


class Constraint(Protocol):
    """Something wished of the next token."""

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """Ids so far (N, T), log-probabilities (N, V), tokens that may still come -> log-probabilities (N, V)."""
        ...


def constrained(constraints: Sequence[Constraint], ids: Tensor, logp: Tensor, left: int) -> Tensor:
    """Log-probabilities (B, r, V) after all constraints, in their order; `ids` are (B, r, T)."""
    if not constraints:
        return logp
    changed, flat = logp.flatten(0, 1), ids.flatten(0, 1)
    for constraint in constraints:
        changed = constraint(flat, changed, left)
    return changed.view(logp.shape)


@dataclass(frozen=True)
class Suppress:
    """Tokens that are never said.

    Attributes:
        ids: which.
    """

    ids: tuple[int, ...]

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`."""
        return logp.index_fill(-1, torch.tensor(self.ids, dtype=torch.long, device=logp.device), -math.inf)


@dataclass(frozen=True)
class MinLength:
    """No <EOS> before so many new tokens.

    Attributes:
        least: fewest new tokens, <EOS> counted (transformers' ``min_new_tokens`` does not count it).
        prompt: tokens of the prompt.
        eos_id: the token that ends a sequence.
    """

    least: int
    prompt: int
    eos_id: int

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`."""
        if ids.shape[1] - self.prompt + 1 >= self.least:
            return logp
        return logp.index_fill(-1, torch.tensor([self.eos_id], device=logp.device), -math.inf)


@dataclass(frozen=True)
class RepetitionPenalty:
    """The log-probability of every token that is already there is multiplied (Keskar et al. 2019, sec. 4.1).

    As in the beam search of transformers, prompt and begin token count as being there. Their greedy search multiplies
    or divides logits instead, whose zero means nothing; here one beam is punished as several are.

    Attributes:
        penalty: above 1 repetitions become rarer, below 1 more frequent.
    """

    penalty: float

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`."""
        return logp.scatter(1, ids, logp.gather(1, ids) * self.penalty)


@dataclass(frozen=True)
class NoRepeatNgram:
    """No n tokens follow each other twice (Paulus et al. 2017); the prompt counts, <EOS> may always follow.

    Attributes:
        n: tokens in a row.
        eos_id: the token that ends a sequence.
    """

    n: int
    eos_id: int

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`."""
        if ids.shape[1] < self.n:
            return logp
        windows = ids.unfold(1, self.n, 1)  # (N, T-n+1, n)
        tail = ids[:, ids.shape[1] - self.n + 1:]  # (N, n-1), what such a window would begin with
        last = windows[..., -1]
        repeats = (windows[..., :-1] == tail[:, None]).all(-1) & (last != self.eos_id)  # (N, T-n+1)
        hits = torch.zeros_like(logp).scatter_add_(1, last, repeats.to(logp.dtype))
        return logp.masked_fill(hits > 0, -math.inf)


class Avoid:
    """Phrases that are never said.

    Args:
        automaton: that finds any of them (`Automaton.build` with ``wanted="any"``).
    """

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`; a phrase that only the next token would finish off may not stand at the very end."""
        after = self.automaton.after(self.automaton.follow(ids))  # (N, V)
        said = self.automaton.final if left == 1 else self.automaton.settled
        return logp.masked_fill(said.to(after.device)[after], -math.inf)


# -- shaping what is sampled from ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Temperature:
    """Log-probabilities divided by a number and normalised again; below 1 the likely becomes likelier.

    Attributes:
        temperature: above 0.
    """

    temperature: float

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`."""
        return (logp / self.temperature).log_softmax(-1)


@dataclass(frozen=True)
class TopK:
    """Only the k most likely tokens (Fan et al. 2018).

    Attributes:
        k: how many; equally likely ones beyond the k-th are left out.
    """

    k: int

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`."""
        best, places = logp.topk(min(self.k, logp.shape[-1]), dim=-1)
        return torch.full_like(logp, -math.inf).scatter(-1, places, best)


@dataclass(frozen=True)
class TopP:
    """Only the most likely tokens that together have probability p, at least one (Holtzman et al. 2020, sec. 3.1).

    Attributes:
        p: above 0, at most 1.
    """

    p: float

    def __call__(self, ids: Tensor, logp: Tensor, left: int) -> Tensor:
        """See `Constraint`; log-probabilities need not be normalised."""
        best, places = logp.sort(dim=-1, descending=True, stable=True)
        probability = best.softmax(-1)
        before = probability.cumsum(-1) - probability  # what the likelier ones have together
        cut = before >= self.p
        cut[..., 0] = False
        return torch.full_like(logp, -math.inf).scatter(-1, places, best.masked_fill(cut, -math.inf))


def shaping(temperature: float, top_k: int | None, top_p: float | None) -> Iterable[Constraint]:
    """What makes of a distribution the one that is sampled from, in the usual order."""
    if temperature != 1:
        yield Temperature(temperature)
    if top_k is not None:
        yield TopK(top_k)
    if top_p is not None and top_p < 1:
        yield TopP(top_p)


def check_shaping(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise InputError for one that is out of range."""
    if temperature == math.inf:
        raise InputError("temperature=inf: give a finite number (every word would be as likely as any other, whatever "
                         "the picture)")
    if not isinstance(temperature, (int, float)) or not temperature > 0:
        raise InputError(f"temperature={temperature!r}: give a number above 0 (the most likely word every time is "
                         "beams=1)")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise InputError(f"top_k={top_k!r}: give a whole number, at least 1")
    if top_p is not None and (not isinstance(top_p, (int, float)) or not 0 < top_p <= 1):
        raise InputError(f"top_p={top_p!r}: give a number above 0 and at most 1")
