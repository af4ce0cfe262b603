"""One step of a beam search: which open sequences go on, with which token, and which end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .automaton import Automaton
from .steps import NOT_NUMBERS, Hypothesis, Normalisation

STOPS = ("exact", "hf")


class Rules(NamedTuple):
    """Arguments of `beam_search`."""

    eos_id: int
    beams: int
    max_len: int
    normalisation: Normalisation
    n_best: int
    stop: str
    groups: int
    diversity: float

    @property
    def width(self) -> int:
        """Beams of one group, or of one part of what is required."""
        return self.beams // self.groups

    def check(self, prompt: Tensor, required: Automaton | None) -> None:
        """Raise InputError for an argument out of range."""
        for name in ("beams", "max_len", "n_best", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}: give a whole number, at least 1")
        if self.n_best > self.beams:
            raise InputError(f"n_best={self.n_best} must lie between 1 and beams={self.beams}")
        if self.stop not in STOPS:
            raise InputError(f"stop={self.stop!r}: give one of {', '.join(STOPS)}")
        if self.beams % self.groups:
            raise InputError(f"groups={self.groups} must divide beams={self.beams}")
        if not isinstance(self.diversity, (int, float)) or not 0 <= self.diversity < math.inf:
            raise InputError(f"diversity={self.diversity!r}: give a number, at least 0")
        if required is not None and self.groups > 1:
            raise InputError(f"groups={self.groups}: words that must appear divide the beams already; give groups=1")
        if prompt.ndim != 2 or prompt.shape[1] < 1:
            raise InputError(f"prompt of shape {tuple(prompt.shape)}: give (B, T) ids with at least one column")

    def score(self, total: float, length: int) -> float:
        """What a sum over `length` new tokens counts."""
        return total / self.normalisation.divisor(length)

    def decided(self, found: Sequence[Sequence[Hypothesis]], best_open: Sequence[float], length: int) -> bool:
        """Whether nothing that an image's groups have open can change what is returned: (groups,) each."""
        return all(self._settled(*one, length) for one in zip(found, best_open))

    def _settled(self, found: Sequence[Hypothesis], best_open: float, length: int) -> bool:
        if best_open == -math.inf:
            return True
        enough, at = (self.width, length) if self.stop == "hf" else (min(self.n_best, self.width), self.max_len)
        if len(found) < enough:
            return False
        return sorted((one.score for one in found), reverse=True)[enough - 1] >= self.score(best_open, at)


@dataclass
class Open:
    """The open sequences of B images, r rows each; a closed place has a sum of -inf.

    Attributes:
        images: which of all images the B are.
        ids: (B, r, T).
        sums: (B, r) what they are ranked by, in float64 where there is one.
        logps: (B, r, t) what the model gave to each new token.
        states: (B, r) of the automaton of what is required.
    """

    images: list[int]
    ids: Tensor
    sums: Tensor
    logps: Tensor
    states: Tensor | None

    @classmethod
    def first(cls, prompt: Tensor, required: Automaton | None) -> Open:
        """One row per image, the prompt."""
        exact = torch.float32 if prompt.device.type == "mps" else torch.float64  # Metal has no float64
        sums = torch.zeros(len(prompt), 1, dtype=exact, device=prompt.device)
        return cls(list(range(len(prompt))), prompt[:, None], sums, sums.new_zeros(len(prompt), 1, 0),
                   None if required is None else required.follow(prompt)[:, None])

    def select(self, kept: list[int]) -> None:
        """Keep these images."""
        places = torch.tensor(kept, device=self.ids.device)
        self.ids, self.sums, self.logps = self.ids[places], self.sums[places], self.logps[places]
        self.states = None if self.states is None else self.states[places]
        self.images = [self.images[i] for i in kept]

    def best(self, groups: int) -> list[list[float]]:
        """The best sum of each image and group."""
        return self.sums.unflatten(1, (groups, -1)).amax(2).tolist()


class Choice(NamedTuple):
    """Continuations of one step.

    Attributes:
        ended: (n, 3) image, row and group of those that end.
        totals: (n,) their sums.
        parents: (B, r') the row each open one continues.
        tokens: (B, r') what it says.
        sums: (B, r') its new sum, -inf in closed places.
    """

    ended: Tensor
    totals: Tensor
    parents: Tensor
    tokens: Tensor
    sums: Tensor

    @staticmethod
    def join(parts: Sequence[Choice]) -> Choice:
        """The choices of several groups of beams side by side."""
        if len(parts) == 1:
            return parts[0]
        return Choice(*(torch.cat([part[field] for part in parts], int(field > 1)) for field in range(5)))


def choose(open_: Open, scores: Tensor, rules: Rules, required: Automaton | None, left: int) -> Choice:
    """The continuations of all beams; `left` more tokens may follow them."""
    if required is not None:
        return _choose_by_lane(open_, scores, rules, required, left)
    if rules.groups == 1:
        return _best_of(open_.sums, scores, rules, 0)
    first, width, parts = open_.sums.shape[1] == 1, rules.width, []
    said = torch.zeros_like(scores[:, 0])  # (B, V) how many beams of earlier groups say a token now
    for group in range(rules.groups):
        part = slice(0, 1) if first else slice(group * width, (group + 1) * width)
        chosen = _best_of(open_.sums[:, part], scores[:, part] - rules.diversity * said[:, None], rules, group)
        said.scatter_add_(1, chosen.tokens, (chosen.sums > -math.inf).to(said.dtype))
        offset = torch.tensor([0, part.start, 0], device=said.device)
        parts.append(chosen._replace(parents=chosen.parents + part.start, ended=chosen.ended + offset))
    return Choice.join(parts)


def _choose_by_lane(open_: Open, scores: Tensor, rules: Rules, required: Automaton, left: int) -> Choice:
    """The best of every lane of the automaton that can still be brought to its end."""
    assert open_.states is not None
    after = required.after(open_.states)  # (B, r, V)
    scores = scores.masked_fill(required.distance[after] > left, -math.inf)
    ends = required.final[after[..., rules.eos_id]]  # (B, r)
    scores[..., rules.eos_id] = scores[..., rules.eos_id].masked_fill(~ends, -math.inf)
    lane = required.lane[after]
    live = set(open_.states[open_.sums > -math.inf].tolist())
    lanes = sorted({one for state in live for one in required.lanes_after[state]})
    parts = [_best_of(open_.sums, scores.masked_fill(lane != one, -math.inf), rules, 0) for one in lanes]
    used = [part for part in parts if bool((part.sums > -math.inf).any())]
    ended = Choice.join(parts)
    return Choice.join(used or parts[:1])._replace(ended=ended.ended, totals=ended.totals)


def _best_of(sums: Tensor, scores: Tensor, rules: Rules, group: int) -> Choice:
    """What one group of beams goes on with.

    Args:
        sums: (B, r) of its beams.
        scores: (B, r, V) of the next token.
        rules: its width and end token.
        group: its number.
    """
    beams, vocabulary = rules.width, scores.shape[-1]
    wanted = 2 * beams if beams > 1 else 1
    # the best of each row first: what is best of all is among them, and sums need the wider type for few only
    each, tokens = scores.topk(min(wanted, vocabulary), dim=2)  # (B, r, k)
    total = (sums[..., None] + each.to(sums.dtype)).flatten(1)  # (B, r*k)
    candidates = min(wanted, total.shape[1])
    best, flat = total.topk(candidates, dim=1)  # (B, candidates), descending
    if bool(best.isnan().any()):
        raise InputError(NOT_NUMBERS)
    parents, tokens = flat // each.shape[2], tokens.flatten(1).gather(1, flat)
    ends = tokens == rules.eos_id
    counted = ends & (best > -math.inf)
    counted[:, beams:] = False
    image, place = counted.nonzero(as_tuple=True)
    ended = torch.stack([image, parents[image, place], torch.full_like(image, group)], 1)
    totals = best[image, place]
    best = best.masked_fill(ends, -math.inf)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :beams]  # the open ones, best first
    if order.shape[1] < beams:  # fewer continuations than beams: fill up with closed places
        order = torch.cat([order, order[:, :1].expand(-1, beams - order.shape[1])], 1)
    best, parents, tokens = (x.gather(1, order) for x in (best, parents, tokens))
    best[:, min(candidates, beams):] = -math.inf
    return Choice(ended, totals, parents, tokens, best)


def advance(open_: Open, choice: Choice, logp: Tensor, required: Automaton | None) -> Tensor | None:
    """Let the open sequences go on; returns which row each row continues, None where every row continues itself."""
    n_images, n_rows = open_.sums.shape
    parents, tokens = choice.parents, choice.tokens
    said = logp.flatten(1).gather(1, parents * logp.shape[2] + tokens)[..., None].to(open_.logps.dtype)
    alone = n_rows == parents.shape[1] == 1
    ids, logps = (open_.ids, open_.logps) if alone else (
        one.gather(1, parents[..., None].expand(-1, -1, one.shape[2])) for one in (open_.ids, open_.logps))
    open_.ids = torch.cat([ids, tokens[..., None]], 2)
    open_.logps = torch.cat([logps, said], 2)
    if required is not None:
        assert open_.states is not None
        after = required.after(open_.states)  # (B, r, V)
        open_.states = after.flatten(1).gather(1, parents * logp.shape[2] + tokens)
    open_.sums = choice.sums
    if alone:
        return None
    return (torch.arange(n_images, device=tokens.device)[:, None] * n_rows + parents).flatten()
