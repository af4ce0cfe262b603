"""How often a classifier is right, where it is wrong, and how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .bootstrap import percentiles, resampled


class Confusion(NamedTuple):
    """A mistake: that many photos of class `true` were taken for `predicted`."""

    true: str
    predicted: str
    photos: int


def top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the right class is among the k with the highest logits.

    Of equal logits the class of the lower number comes first, as with argmax: a model that says the same of all
    classes is not right about all of them.

    Args:
        logits: (B, V), any floating type.
        labels: (B,) class numbers, 0 to V - 1.
        k: how many may be tried; V and more are always right.

    Returns:
        (B,) boolean, on the device of the logits.

    Raises:
        InputError: shapes that do not go together, a label outside 0 to V - 1, logits that are nan, or k below 1.
    """
    if not isinstance(k, int) or k < 1:
        raise InputError(f"k={k!r} must be a whole number above 0", source="top_k")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise InputError(f"logits are {logits.dtype} of shape {tuple(logits.shape)}, floating (B, V) are needed",
                         source="top_k")
    labels = _ids(labels, logits.shape[1], "labels").to(logits.device)
    if len(labels) != len(logits):
        raise InputError(f"{len(labels)} labels for {len(logits)} rows of logits", source="top_k")
    if logits.isnan().any():
        raise InputError("logits hold nan, which has no rank", source="top_k")
    own = logits.gather(1, labels[:, None])  # (B, 1)
    places = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (places < labels[:, None]))  # (B, V)
    return ahead.sum(1) < k


def accuracy(predicted: Any, labels: Any) -> float:
    """The share of predictions that are right, 0 to 1.

    Args:
        predicted, labels: (B,) class numbers: tensors, arrays or lists.

    Raises:
        InputError: none at all, or not as many of the one as of the other.
    """
    predicted, labels = _pair(predicted, labels)
    return float((predicted == labels).double().mean())


def mean_per_class(predicted: Any, labels: Any, classes: int) -> float:
    """The mean, over the classes that occur among the labels, of the share found of each, 0 to 1.

    Args:
        predicted, labels: (B,) class numbers: tensors, arrays or lists.
        classes: V.

    Raises:
        InputError: as `accuracy`, or a class number outside 0 to V - 1.
    """
    predicted, labels = _pair(predicted, labels, classes)
    there = torch.bincount(labels, minlength=classes).double()  # (V,)
    found = torch.bincount(labels[predicted == labels], minlength=classes).double()
    return float((found / there)[there > 0].mean())


def confusion_pairs(predicted: Any, labels: Any, names: Sequence[str], most: int = 10) -> list[Confusion]:
    """The most frequent mistakes.

    Args:
        predicted, labels: (B,) class numbers: tensors, arrays or lists.
        names: of the V classes.
        most: so many at most.

    Returns:
        By falling count, then by the numbers of the true and the predicted class.

    Raises:
        InputError: as `mean_per_class`.
    """
    predicted, labels = _pair(predicted, labels, len(names))
    pairs = Counter(pair for pair in zip(labels.tolist(), predicted.tolist()) if pair[0] != pair[1])
    ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Confusion(names[true], names[wrong], count) for (true, wrong), count in ranked[:most]]


def bootstrap_interval(correct: Any, *, level: float = 0.95, draws: int = 10_000,
                       seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the share of images that are right.

    It knows of no image but these: where all of them are right (or wrong) it has no width. Of a single image
    nothing can be said: (0, 1).

    Args:
        correct: (B,) boolean, of each image: tensor, array or list.
        level: of confidence.
        draws: of B images, with replacement.
        seed: of the draws; equal for equal results.

    Returns:
        (low, high), shares from 0 to 1.

    Raises:
        InputError: no images, values that are not boolean, a level outside 0 to 1, or draws below 1.
    """
    values = np.asarray(torch.as_tensor(correct).cpu())
    if values.dtype != bool or values.ndim != 1 or not len(values):
        raise InputError(f"correct is {values.dtype} of shape {values.shape}, at least one boolean (B,) is needed",
                         source="bootstrap_interval")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level={level} must lie between 0 and 1, draws={draws} be at least 1",
                         source="bootstrap_interval")
    if len(values) == 1:
        return 0.0, 1.0
    counts = np.stack([values, np.ones_like(values)], axis=1).astype(np.int64)  # (B, 2)
    return percentiles(resampled(counts, draws, seed), level)


def _ids(values: Any, classes: int | None, what: str) -> Tensor:
    """(B,) int64 class numbers, each below `classes`."""
    ids = torch.as_tensor(values)
    if not ids.numel():  # an empty list has no type
        ids = ids.long()
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"{what} are {ids.dtype} of shape {tuple(ids.shape)}, whole numbers (B,) are needed")
    if classes is not None and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        raise InputError(f"{what} from {int(ids.min())} to {int(ids.max())}: there are {classes} classes, "
                         f"0 to {classes - 1}")
    return ids.long()


def _pair(predicted: Any, labels: Any, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Both on the CPU, as many of the one as of the other, and at least one."""
    ids = _ids(predicted, classes, "predictions").cpu(), _ids(labels, classes, "labels").cpu()
    if len(ids[0]) != len(ids[1]) or not len(ids[0]):
        raise InputError(f"{len(ids[0])} predictions and {len(ids[1])} labels: as many are needed, and at least one")
    return ids
