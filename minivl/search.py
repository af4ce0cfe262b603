"""Greedy and beam search over a step protocol: nothing here has ever seen a network.

A decoding is anything with the four verbs of `Steps`; captioners give one (`Captioner.decoding`), and a
table of probabilities in a test is another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError

NORMALISATIONS = ("none", "mean")


class Steps(Protocol):
    """What a search needs of a decoding of B images with r text rows each (side by side)."""

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


@dataclass(frozen=True)
class Hypothesis:
    """One found sequence.

    Attributes:
        ids: the prompt and the chosen tokens; ends with <EOS> if it was chosen.
        logprob: sum of the log-probabilities of the chosen tokens.
        score: what hypotheses were ranked by: logprob, or its mean per chosen token.
    """

    ids: tuple[int, ...]
    logprob: float
    score: float


@torch.no_grad()
def beam_search(decode: Steps, prompt: Tensor, *, eos_id: int, beams: int = 3, max_len: int = 30,
                normalise: str = "none", n_best: int = 1) -> list[list[Hypothesis]]:
    """Beam search for a batch of images.

    At each step the best ``2 * beams`` continuations of the open beams are looked at in order: one that
    ends counts as finished if it is among the first `beams`; of the others the first `beams` stay open.
    With one beam only the best continuation is looked at, which is greedy search. An image is finished,
    and leaves the batch, when none of its open beams can still win. At `max_len` the open beams compete
    as they are.

    Args:
        decode: the step protocol over B images.
        prompt: (B, T) ids every sequence begins with.
        eos_id: the token that ends a sequence.
        beams: hypotheses kept open.
        max_len: most new tokens, <EOS> counted, prompt not.
        normalise: "none" ranks by the sum of log-probabilities, "mean" by their mean per new token.
        n_best: hypotheses to return per image, at most `beams`.

    Returns:
        For each image its hypotheses, best first (fewer than n_best where fewer exist).

    Raises:
        InputError: an argument out of range, or log-probabilities that are nan.
    """
    for name, value in (("beams", beams), ("max_len", max_len), ("n_best", n_best)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: give a whole number, at least 1")
    if not 1 <= n_best <= beams:
        raise InputError(f"n_best={n_best} must lie between 1 and beams={beams}")
    if normalise not in NORMALISATIONS:
        raise InputError(f"normalise={normalise!r}: give one of {', '.join(NORMALISATIONS)}")
    if prompt.ndim != 2 or prompt.shape[1] < 1:
        raise InputError(f"prompt of shape {tuple(prompt.shape)}: give (B, T) ids with at least one column")
    finished: list[list[Hypothesis]] = [[] for _ in range(prompt.shape[0])]
    images = list(range(prompt.shape[0]))  # which image each present row group is
    if not images:
        return []
    logp = decode.prefill(prompt)[:, None]  # (B, r, V) with r = 1 so far
    ids = prompt[:, None]  # (B, r, T)
    if not 0 <= eos_id < logp.shape[-1]:
        raise InputError(f"eos_id={eos_id} is outside the vocabulary of {logp.shape[-1]}")
    exact = torch.float32 if prompt.device.type == "mps" else torch.float64  # Metal has no float64
    sums = torch.zeros(len(images), 1, dtype=exact, device=prompt.device)  # (B, r)
    for length in range(1, max_len + 1):
        ended, tokens, parents, sums_open = _advance(sums, logp, eos_id, beams)
        for image, beam, logprob in ended:
            sequence = (*ids[image, beam].tolist(), eos_id)
            finished[images[image]].append(_hypothesis(sequence, logprob, length, normalise))
        continued = ids.gather(1, parents[..., None].expand(-1, -1, ids.shape[2]))
        ids = torch.cat([continued, tokens[..., None]], 2)
        rows = (torch.arange(len(images), device=ids.device)[:, None] * sums.shape[1] + parents).flatten()
        sums = sums_open
        if bool(sums.isnan().any()):
            raise InputError("the model gives log-probabilities that are nan")
        if length == max_len:
            _compete(finished, images, ids, sums, length, normalise)
            break
        open_ = [i for i, best in enumerate(sums.max(1).values.tolist())
                 if not _decided(finished[images[i]], best, n_best, max_len, normalise)]
        if not open_:
            break
        decode.reorder(rows)
        if len(open_) < len(images):
            kept = torch.tensor(open_, device=ids.device)
            decode.select(kept)
            ids, sums, images = ids[kept], sums[kept], [images[i] for i in open_]
        logp = decode.step(ids[..., -1].flatten()).unflatten(0, sums.shape)  # (B, beams, V)
    if not all(finished):
        raise InputError("no sequence has a finite log-probability: the model gives nan or -inf")
    return [sorted(found, key=lambda one: -one.score)[:n_best] for found in finished]


def greedy_search(decode: Steps, prompt: Tensor, *, eos_id: int, max_len: int = 30) -> list[Hypothesis]:
    """The best token at every step: `beam_search` with one beam."""
    return [found[0] for found in beam_search(decode, prompt, eos_id=eos_id, beams=1, max_len=max_len)]


def _advance(sums: Tensor, logp: Tensor, eos_id: int, beams: int
             ) -> tuple[list[tuple[int, int, float]], Tensor, Tensor, Tensor]:
    """One step: which sequences end, and which go on.

    Returns:
        ``(ended, tokens, parents, sums)``: ended (image, beam, logprob); the others (B, beams) each,
        closed places with a sum of -inf.
    """
    n_images, n_rows, vocabulary = logp.shape
    total = (sums[..., None] + logp.to(sums.dtype)).flatten(1)  # (B, r*V)
    candidates = min(2 * beams if beams > 1 else 1, total.shape[1])
    best, flat = total.topk(candidates, dim=1)  # (B, candidates), descending
    parents, tokens = flat // vocabulary, flat % vocabulary
    ends = tokens == eos_id
    among_first = torch.arange(candidates, device=best.device) < beams
    ended = [(image, int(parents[image, place]), float(best[image, place]))
             for image, place in (ends & among_first & (best > -math.inf)).nonzero().tolist()]
    best = best.masked_fill(ends, -math.inf)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :beams]  # the open ones, best first
    if order.shape[1] < beams:  # fewer continuations than beams: fill up with closed places
        order = torch.cat([order, order[:, :1].expand(-1, beams - order.shape[1])], 1)
    best, parents, tokens = (x.gather(1, order) for x in (best, parents, tokens))
    best[:, min(candidates, beams):] = -math.inf
    return ended, tokens, parents, best


def _hypothesis(ids: tuple[int, ...], logprob: float, length: int, normalise: str) -> Hypothesis:
    return Hypothesis(ids, logprob, logprob / length if normalise == "mean" else logprob)


def _compete(finished: list[list[Hypothesis]], images: list[int], ids: Tensor, sums: Tensor, length: int,
             normalise: str) -> None:
    """At the length limit the open beams count as they are."""
    for image, found, logprobs in zip(images, ids.tolist(), sums.tolist()):
        finished[image] += [_hypothesis(tuple(sequence), logprob, length, normalise)
                            for sequence, logprob in zip(found, logprobs) if logprob > -math.inf]


def _decided(found: list[Hypothesis], best_open: float, n_best: int, max_len: int, normalise: str) -> bool:
    """Whether no open beam can enter the n best: sums only fall, and a mean is best at the full length."""
    if best_open == -math.inf:
        return True
    if len(found) < n_best:
        return False
    reachable = best_open / max_len if normalise == "mean" else best_open
    return sorted((one.score for one in found), reverse=True)[n_best - 1] >= reachable
