"""The pointing game on words: does the attention peak of a noun fall on what the noun names?

After Zhang et al., Top-down Neural Attention by Excitation Backprop (ECCV 2016), whose game asks it
of class labels; here it is asked of every noun of a caption, and a noun that names nothing in the
picture is a miss, so that inventing things does not pay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, some
from .bootstrap import percentiles, resampled

Look = tuple[tuple[float, float], "np.ndarray | None"]
"""A noun's attention peak, (y, x) in pixels, and the (H, W) mask of what it names (None: nothing)."""


@dataclass(frozen=True)
class Pointing:
    """What `pointing_score` returns.

    Attributes:
        score: share of all nouns whose peak is inside their mask, 0 to 1.
        interval: bootstrap 95 % interval of the score, over items (images), not nouns.
        hits: nouns that hit.
        nouns: all nouns.
        per_item: id -> (hits, nouns) of that item; items without nouns are there with (0, 0).
        signature: all that must be equal for two scores to be comparable.
    """

    score: float
    interval: tuple[float, float]
    hits: int
    nouns: int
    per_item: dict[Any, tuple[int, int]]
    signature: str


def point(peak: tuple[float, float], mask: np.ndarray | None) -> bool:
    """Whether the pixel that holds the peak is in the mask.

    Args:
        peak: (y, x) in pixels of the mask; pixel (i, j) holds i <= y < i+1, j <= x < j+1, so that both
            the index of a pixel and its centre (i + 0.5, j + 0.5) are right.
        mask: (H, W) boolean, or None for a noun that names nothing in the picture: a miss.

    Raises:
        InputError: a peak outside the mask's picture or not a number, or a mask of another kind.
    """
    if len(peak) != 2 or not all(math.isfinite(place) and place >= 0 for place in peak):
        raise InputError(f"the peak {peak} is no (y, x) of a pixel", source="point")
    if mask is None:
        return False
    mask = _mask(mask)
    row, column = math.floor(peak[0]), math.floor(peak[1])
    if row >= mask.shape[0] or column >= mask.shape[1]:
        raise InputError(f"the peak (y, x) = {peak} is outside the mask of {mask.shape[0]} x {mask.shape[1]} "
                         "(height x width)", source="point")
    return bool(mask[row, column])


def pointing_score(looks: Mapping[Any, Sequence[Look]], *, samples: int = 2000, seed: int = 0) -> Pointing:
    """Share of nouns that point at what they name, with a bootstrap interval.

    The bootstrap draws items with replacement, because the nouns of one image stand and fall
    together. A draw without any noun is left out. With nouns in fewer than two items nothing can be
    said and the interval is (0, 1).

    Args:
        looks: item id -> one (peak, mask) per noun of its caption, see `point`.
        samples: bootstrap draws.
        seed: of the draws; equal for equal results.

    Raises:
        InputError: no nouns at all, ``samples`` below 1, or a look `point` refuses (named by item and noun).
    """
    per_item = {}
    for id, nouns in looks.items():
        found = [_named(id, place, look) for place, look in enumerate(nouns)]
        per_item[id] = (sum(found), len(found))
    counts = _counts(per_item)
    hits, total = (int(number) for number in counts.sum(axis=0))
    if not total:
        raise InputError(f"there are no nouns in the {len(looks)} items, hence no score",
                         source="pointing_score")
    interval = (0.0, 1.0)
    if np.count_nonzero(counts[:, 1]) > 1:
        interval = percentiles(resampled(counts, samples, seed))
    return Pointing(hits / total, interval, hits, total, per_item,
                    f"pointing|items{len(looks)}|nouns{total}|boot{samples}|seed{seed}|v1")


def chance(looks: Mapping[Any, Sequence[Look]]) -> float:
    """The score to expect of peaks at uniformly random pixels: the mean share of it that a mask covers.

    Args:
        looks: as for `pointing_score`; a noun that names nothing counts 0, peaks play no part.

    Raises:
        InputError: no nouns at all, or a mask that is none.
    """
    shares = [0.0 if mask is None else float(_mask(mask).mean())
              for nouns in looks.values() for _, mask in nouns]
    if not shares:
        raise InputError(f"there are no nouns in the {len(looks)} items, hence no score", source="chance")
    return math.fsum(shares) / len(shares)


def difference(a: Pointing, b: Pointing, *, samples: int = 2000,
               seed: int = 0) -> tuple[float, tuple[float, float]]:
    """How much better ``a`` points than ``b`` on the same items.

    A paired bootstrap: each draw takes the same items of both, so what makes an item easy or hard for
    both cancels. ``a`` is better beyond doubt where the whole interval is above 0.

    Args:
        a: a score.
        b: another over the same items (their nouns may differ, as captions do).
        samples: bootstrap draws; draws without a noun on either side are left out.
        seed: of the draws.

    Returns:
        ``(a.score - b.score, (low, high))``, a 95 % interval; (-1, 1) with nouns in fewer than two items.

    Raises:
        InputError: the items differ, or ``samples`` is below 1.
    """
    apart = [repr(id) for id in [*a.per_item, *b.per_item] if (id in a.per_item) != (id in b.per_item)]
    if apart:
        raise InputError(f"the two scores are of different items; only on one side: {some(apart, 5)}",
                         source="difference")
    mean = a.score - b.score
    ours, theirs = _counts(a.per_item), _counts({id: b.per_item[id] for id in a.per_item})
    if min(np.count_nonzero(ours[:, 1]), np.count_nonzero(theirs[:, 1])) < 2:
        return mean, (-1.0, 1.0)
    return mean, percentiles(resampled(ours, samples, seed) - resampled(theirs, samples, seed))


def _named(id: Any, place: int, look: Look) -> bool:
    try:
        peak, mask = look
        return point(peak, mask)
    except InputError as error:
        raise InputError(f"noun {place} of {id!r}: {error}", source="pointing_score") from None
    except (TypeError, ValueError):
        raise InputError(f"noun {place} of {id!r} is no ((y, x), mask)", source="pointing_score") from None


def _mask(mask: Any) -> np.ndarray:
    array = np.asarray(mask)
    if array.dtype != bool or array.ndim != 2 or not array.size:
        raise InputError(f"the mask is {array.dtype} of shape {array.shape}, a boolean (H, W) is needed",
                         source="mask")
    return array


def _counts(per_item: Mapping[Any, tuple[int, int]]) -> np.ndarray:
    """(items, 2) whole numbers: hits, nouns."""
    return np.array(list(per_item.values()), dtype=np.int64).reshape(-1, 2)
