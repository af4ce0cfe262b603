"""Is one score really higher than another? 0.94 against 0.95 on one set of images means nothing by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, some
from .bootstrap import percentiles, resampled
from .score import Score, Scores, same_signature

TOGETHER = 1 << 22  # signs drawn at a time


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Attributes:
        difference: the first score minus the second.
        interval: 95 % of the bootstrap's differences lie in it.
        p: how often a difference at least as large, up or down, comes about when which of the two said what is drawn by
            lot: near 0 the two differ, near 1 chance does as much.
        images: how many were scored.
        differing: on how many the two scores differ at all.
        signature: what was compared how.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    images: int
    differing: int
    signature: str


def compare(a: Score, b: Score, *, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two scores of the same images.

    Both tests are paired: what makes an image easy or hard for both cancels. The interval is of the bootstrap over
    images (Efron 1979): the mean difference of as many images, drawn with replacement. The p value is of the
    permutation test that swaps the two scores of each image or not, by lot (Fisher 1935), where the scores at hand
    count as one of the draws (Phipson and Smyth 2010): it is at least 1 / (samples + 1), never 0.

    They tell what other images would give, not what training anew from another seed would.

    Args:
        a, b: scores that are the mean of their images', as CIDEr, ROUGE-L and CLIPScore are.
        samples: draws of either.
        seed: of the draws; equal for equal results.

    Raises:
        InputError: other signatures or other ids; fewer than two images; BLEU, or any score that is not the mean of
            its images'; a score that is not finite; ``samples`` below 1.
    """
    for one in (a, b):
        _check(one)
    signature = same_signature(a, b)
    apart = [repr(id) for id in [*a.per_item, *b.per_item] if (id in a.per_item) != (id in b.per_item)]
    if apart:
        raise InputError(f"the two scores are of different images; {len(apart)} are only on one side: {some(apart, 5)}",
                         source="compare")
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r} must be a whole number, at least {least}", source="compare")
    apart_by = np.array([value - b.per_item[id] for id, value in a.per_item.items()])  # (I,)
    counts = np.stack([apart_by, np.ones(len(apart_by))], axis=1)  # (I, 2)
    return Comparison(math.fsum(apart_by) / len(apart_by), percentiles(resampled(counts, samples, seed)),
                      _sign_flips(apart_by[apart_by != 0], samples, seed), len(apart_by), int((apart_by != 0).sum()),
                      f"paired|boot{samples}|flips{samples}|seed{seed}|images{len(apart_by)}|v1 of {signature}")


def _check(score: Score) -> None:
    if not isinstance(score, (Score, Scores)):
        raise InputError(f"a {type(score).__name__} cannot be compared here, a Score is needed", source="compare")
    if isinstance(score, Scores) or score.signature.startswith("bleu"):
        raise InputError("BLEU of a set is no mean of its images' (counts are summed first), so that the images' "
                         "scores cannot tell how sure a difference is; compare CIDEr-D or ROUGE-L", source="compare")
    values = list(score.per_item.values())
    if len(values) < 2:
        raise InputError(f"of {len(values)} image nothing can be said; at least 2 are needed", source="compare")
    if wrong := [repr(id) for id, value in score.per_item.items() if not math.isfinite(value)]:
        raise InputError(f"{len(wrong)} images have scores that are not finite: {some(wrong, 5)}", source="compare")
    mean = math.fsum(values) / len(values)
    if not math.isclose(mean, score.score, rel_tol=1e-6, abs_tol=1e-9):
        raise InputError(f"the score {score.score} is not the mean of its images' ({mean}), so that these cannot tell "
                         "how sure a difference is", source="compare")


def _sign_flips(values: np.ndarray, samples: int, seed: int) -> float:
    """How often, the signs drawn by lot, the sum of the values is as far from 0 as it is."""
    draw = np.random.default_rng(seed)
    reached = abs(values.sum()) - 1e-12 * np.abs(values).sum()  # equal sums may differ in the last bits
    found, rows = 1, max(1, TOGETHER // max(len(values), 1))
    for start in range(0, samples, rows):
        signs = draw.integers(0, 2, (min(rows, samples - start), len(values)), dtype=np.int8)
        found += int((np.abs(signs @ (2 * values) - values.sum()) >= reached).sum())
    return found / (samples + 1)
