"""Beam search: plain, in diverse groups, or with words that must appear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .automaton import Automaton
from .choice import Choice, Open, Rules, advance, choose
from .constraints import Constraint, constrained
from .steps import Hypothesis, Normalisation, NothingFound, Steps


@torch.no_grad()
def beam_search(decode: Steps, prompt: Tensor, *, eos_id: int, beams: int = 3, max_len: int = 30,
                normalise: str = "none", n_best: int = 1, stop: str = "exact", groups: int = 1, diversity: float = 0.5,
                constraints: Sequence[Constraint] = (), required: Automaton | None = None) -> list[list[Hypothesis]]:
    """Beam search for a batch of images.

    At each step the best ``2 * beams`` continuations of the open beams are looked at in order: one that
    ends counts as finished if it is among the first `beams`; of the others the first `beams` stay open.
    With one beam only the best continuation is looked at, which is greedy search. An image is finished,
    and leaves the batch, when none of its open beams can still win. At `max_len` the open beams compete
    as they are.

    With `groups` the beams are divided: each group is a search of its own with ``beams / groups`` beams, and a token
    loses `diversity` for every beam of an earlier group that has just said it (Vijayakumar et al. 2018, Hamming
    diversity). With `required` there are `beams` beams for every part of what is required that has been said
    (Anderson et al. 2017), and only sequences that have said all of it count.

    Args:
        decode: the step protocol over B images.
        prompt: (B, T) ids every sequence begins with.
        eos_id: the token that ends a sequence.
        beams: hypotheses kept open.
        max_len: most new tokens, <EOS> counted, prompt not.
        normalise: "none" ranks by the sum of log-probabilities, "mean" by their mean per new token, "gnmt(alpha)" as
            `Normalisation` says.
        n_best: hypotheses to return per image, at most `beams`. Of groups the best of each come first, then the
            second best of each, up to as many as a group has beams.
        stop: "exact" goes on until no open beam can enter the n best, however it goes on: sums only fall, and are at
            best divided by what a sequence of `max_len` is divided by. "hf" stops as transformers' ``generate`` does by
            default: when `beams` have finished, and the best open beam would not be among them if it ended here.
        groups: must divide `beams`.
        diversity: what a token that an earlier group says loses of its log-probability, at least 0.
        constraints: see `minivl.search.constraints`. None may raise a log-probability above 0.
        required: what must be said; it begins with the prompt.

    Returns:
        For each image its hypotheses, best first, no two of the same ids (fewer than n_best where no more were found,
        or where groups found the same).

    Raises:
        InputError: an argument out of range, log-probabilities that are nan, or no sequence that meets the constraints
            (`NothingFound`).
    """
    rules = Rules(eos_id, beams, max_len, Normalisation.parse(normalise), n_best, stop, groups, diversity)
    rules.check(prompt, required)
    finished: list[list[list[Hypothesis]]] = [[[] for _ in range(groups)] for _ in range(prompt.shape[0])]
    if not finished:
        return []
    logp = decode.prefill(prompt)[:, None]  # (B, r, V) with r = 1 so far
    if not 0 <= eos_id < logp.shape[-1]:
        raise InputError(f"eos_id={eos_id} is outside the vocabulary of {logp.shape[-1]}")
    open_ = Open.first(prompt, required)
    for length in range(1, max_len + 1):
        scores = constrained(constraints, open_.ids, logp, max_len - length + 1)
        choice = choose(open_, scores, rules, required, max_len - length)
        for image, group, hypothesis in _ended(open_, choice, logp, rules, length):
            finished[image][group].append(hypothesis)
        rows = advance(open_, choice, logp, required)
        if length == max_len:
            _compete(finished, open_, rules, required)
            break
        kept = [i for i, best in enumerate(open_.best(groups))
                if not rules.decided(finished[open_.images[i]], best, length)]
        if not kept:
            break
        if rows is not None:
            decode.reorder(rows)
        if len(kept) < len(open_.images):
            decode.select(torch.tensor(kept, device=prompt.device))
            open_.select(kept)
        logp = decode.step(open_.ids[..., -1].flatten()).unflatten(0, open_.sums.shape)  # (B, r, V)
    return [_best(found, rules, image, constraints, required) for image, found in enumerate(finished)]


def greedy_search(decode: Steps, prompt: Tensor, *, eos_id: int, max_len: int = 30,
                  constraints: Sequence[Constraint] = ()) -> list[Hypothesis]:
    """The best token at every step: `beam_search` with one beam."""
    return [found[0] for found in beam_search(decode, prompt, eos_id=eos_id, beams=1, max_len=max_len,
                                              constraints=constraints)]


def _ended(open_: Open, choice: Choice, logp: Tensor, rules: Rules, length: int
           ) -> list[tuple[int, int, Hypothesis]]:
    """(image, group, hypothesis) of the sequences that end with this step."""
    if not len(choice.ended):
        return []
    image, row, group = choice.ended.unbind(1)
    logps = torch.cat([open_.logps[image, row], logp[image, row, rules.eos_id, None].to(open_.logps.dtype)], 1)
    return [(open_.images[i], g, Hypothesis((*ids, rules.eos_id), math.fsum(each), rules.score(total, length),
                                            tuple(each)))
            for i, g, ids, each, total in zip(image.tolist(), group.tolist(), open_.ids[image, row].tolist(),
                                              logps.tolist(), choice.totals.tolist())]


def _compete(finished: list[list[list[Hypothesis]]], open_: Open, rules: Rules, required: Automaton | None) -> None:
    """At the length limit the open beams count as they are, if they have said what is required."""
    sums = open_.sums
    if required is not None:
        assert open_.states is not None
        sums = sums.masked_fill(~required.final[open_.states], -math.inf)
    for image, *rows in zip(open_.images, open_.ids.tolist(), open_.logps.tolist(), sums.tolist()):
        for row, (ids, logps, total) in enumerate(zip(*rows)):
            if total > -math.inf:
                found = Hypothesis(tuple(ids), math.fsum(logps), rules.score(total, rules.max_len), tuple(logps))
                group = row // rules.width if rules.groups > 1 else 0
                finished[image][group].append(found)


def _best(found: Sequence[Sequence[Hypothesis]], rules: Rules, image: int, constraints: Sequence[Constraint],
          required: Automaton | None) -> list[Hypothesis]:
    """The hypotheses of an image, best first; of several groups the first of each, then the second of each."""
    ranked = [sorted(group, key=lambda one: -one.score)[:rules.width] for group in found]
    rounds = [[group[place] for group in ranked if place < len(group)]
              for place in range(max(map(len, ranked), default=0))]
    chosen: dict[tuple[int, ...], Hypothesis] = {}
    for round_ in rounds:
        for one in sorted(round_, key=lambda one: -one.score):
            chosen.setdefault(one.ids, one)
    if not chosen:
        wishes = [] if required is None else [f"to say {phrase.name!r}" for phrase in required.phrases]
        wishes += [type(constraint).__name__ for constraint in constraints]
        why = f"nothing was found that meets {', '.join(wishes)}" if wishes else "the model gives nan or -inf"
        raise NothingFound(f"no sequence of image {image} has a finite log-probability: {why}", image)
    return list(chosen.values())[:rules.n_best]
