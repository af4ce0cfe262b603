"""Sampling: sequences drawn token by token from what the model says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .constraints import Constraint, check_shaping, constrained, shaping
from .steps import NOT_NUMBERS, Hypothesis, NothingFound, Steps


@torch.no_grad()
def sample_search(decode: Steps, prompt: Tensor, *, eos_id: int, samples: int = 1, max_len: int = 30,
                  temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
                  seeds: Sequence[Sequence[int]] | None = None, constraints: Sequence[Constraint] = ()
                  ) -> list[list[Hypothesis]]:
    """Draw sequences for a batch of images.

    A token is drawn where a uniform number falls among the cumulated probabilities. The numbers of sample j of an
    image come from its seed and j alone: neither the batch, nor the number of samples, nor `max_len` changes them.

    Args:
        decode: the step protocol over B images.
        prompt: (B, T) ids every sequence begins with.
        eos_id: the token that ends a sequence.
        samples: sequences drawn per image.
        max_len: most new tokens, <EOS> counted, prompt not.
        temperature: what log-probabilities are divided by.
        top_k: draw from the k most likely tokens only.
        top_p: draw from the most likely tokens that have probability p together (Holtzman et al. 2020), after `top_k`.
        seeds: for each image what its numbers are drawn from, whole numbers of 0 or more; None: its place.
        constraints: see `minivl.search.constraints`; they come before the temperature.

    Returns:
        For each image its samples as they were drawn, not ranked. `logprob` is what the model itself gives them, and
        `score` is the same.

    Raises:
        InputError: an argument out of range, log-probabilities that are nan, or constraints that leave nothing to say.
    """
    check_shaping(temperature, top_k, top_p)
    for name, value in (("samples", samples), ("max_len", max_len)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}: give a whole number, at least 1")
    if prompt.ndim != 2 or prompt.shape[1] < 1:
        raise InputError(f"prompt of shape {tuple(prompt.shape)}: give (B, T) ids with at least one column")
    n_images = prompt.shape[0]
    if seeds is not None and len(seeds) != n_images:
        raise InputError(f"{len(seeds)} seeds for {n_images} images: give one for each")
    if not n_images:
        return []
    uniform = _uniform([(place,) for place in range(n_images)] if seeds is None else seeds, samples, max_len)
    logp = decode.prefill(prompt)[:, None].expand(-1, samples, -1)  # (B, n, V)
    if not 0 <= eos_id < logp.shape[-1]:
        raise InputError(f"eos_id={eos_id} is outside the vocabulary of {logp.shape[-1]}")
    open_ = _Open(list(range(n_images)), prompt[:, None].expand(-1, samples, -1), logp.new_zeros(n_images, samples, 0),
                  torch.full((n_images, samples), max_len, device=prompt.device), uniform.to(prompt.device))
    shape = tuple(shaping(temperature, top_k, top_p))
    found: dict[int, list[Hypothesis]] = {}
    for length in range(1, max_len + 1):
        left, done = max_len - length + 1, open_.lengths < length  # (B, n)
        allowed = _checked(constrained(constraints, open_.ids, logp, left), done)
        tokens = draw(constrained(shape, open_.ids, allowed, left), open_.uniform[..., length - 1])  # (B, n)
        open_.say(tokens.masked_fill(done, eos_id), logp, done, eos_id, length)
        over = (open_.lengths <= length).all(1).tolist()
        found.update(open_.finished([i for i, is_over in enumerate(over) if is_over or length == max_len]))
        kept = [i for i, is_over in enumerate(over) if not is_over]
        if not kept or length == max_len:
            break
        if length == 1:  # from here on every sample has a row of its own
            decode.reorder(torch.arange(n_images, device=prompt.device).repeat_interleave(samples))
        if len(kept) < len(over):
            decode.select(torch.tensor(kept, device=prompt.device))
            open_.select(kept)
        logp = decode.step(open_.ids[..., -1].flatten()).unflatten(0, open_.lengths.shape)  # (B, n, V)
    return [found[image] for image in range(n_images)]


@dataclass
class _Open:
    """The samples of B images, n each, those that have ended among them.

    Attributes:
        images: which of all images the B are.
        ids: (B, n, T).
        logps: (B, n, t) what the model gave to each new token.
        lengths: (B, n) new tokens of those that have ended, else max_len.
        uniform: (B, n, max_len) numbers to draw by.
    """

    images: list[int]
    ids: Tensor
    logps: Tensor
    lengths: Tensor
    uniform: Tensor

    def say(self, tokens: Tensor, logp: Tensor, done: Tensor, eos_id: int, length: int) -> None:
        """Append tokens (B, n), which mean nothing where a sample is done."""
        said = logp.gather(2, tokens[..., None])  # (B, n, 1)
        self.ids = torch.cat([self.ids, tokens[..., None]], 2)
        self.logps = torch.cat([self.logps, said], 2)
        self.lengths = self.lengths.masked_fill((tokens == eos_id) & ~done, length)

    def finished(self, places: list[int]) -> dict[int, list[Hypothesis]]:
        """The samples of images whose samples have all ended."""
        found = {}
        for place in places:
            rows = zip(self.ids[place].tolist(), self.logps[place].tolist(), self.lengths[place].tolist())
            prompt = self.ids.shape[2] - self.logps.shape[2]
            hypotheses = []
            for ids, logps, length in rows:
                total = math.fsum(logps[:length])
                hypotheses.append(Hypothesis(tuple(ids[:prompt + length]), total, total, tuple(logps[:length])))
            found[self.images[place]] = hypotheses
        return found

    def select(self, kept: list[int]) -> None:
        """Keep these images."""
        places = torch.tensor(kept, device=self.ids.device)
        self.ids, self.logps = self.ids[places], self.logps[places]
        self.lengths, self.uniform = self.lengths[places], self.uniform[places]
        self.images = [self.images[i] for i in kept]


def _uniform(seeds: Sequence[Sequence[int]], samples: int, max_len: int) -> Tensor:
    """Numbers (B, n, max_len) from 0 to 1, those of a sample drawn from its image's seed and its own number."""
    drawn = [[np.random.default_rng((*seed, sample)).random(max_len) for sample in range(samples)] for seed in seeds]
    return torch.from_numpy(np.array(drawn))


def _checked(logp: Tensor, done: Tensor) -> Tensor:
    """Log-probabilities to draw from, those of samples that are done made harmless."""
    best = logp.amax(-1).masked_fill(done, 0.0)  # (B, n)
    if bool(best.isnan().any()):
        raise InputError(NOT_NUMBERS)
    if bool((over := (best == -math.inf).any(1)).any()):
        raise NothingFound("nothing is left to say: every token is ruled out by the constraints, or the model gives "
                           "-inf", int(over.int().argmax()))
    return logp.masked_fill(done[..., None], 0.0)


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """Tokens where uniform numbers fall among the cumulated probabilities.

    Args:
        logp: (B, n, V) log-probabilities, or logits.
        uniform: (B, n) from 0 to 1.

    Returns:
        (B, n), never a token without probability.
    """
    exact = torch.float32 if logp.device.type == "mps" else torch.float64  # Metal has no float64
    cumulated = logp.softmax(-1).cumsum(-1, dtype=exact)
    # right of all that is not above it: a token without probability is never drawn
    place = torch.searchsorted(cumulated, (uniform.to(exact) * cumulated[..., -1])[..., None], right=True)
    return place[..., 0].clamp(max=logp.shape[-1] - 1)
