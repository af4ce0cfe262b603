"""Retrieval: how often an image finds one of its captions among all, and a caption its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, some

ROWS = 512  # images compared together, so that memory stays small


@dataclass(frozen=True)
class Retrieval:
    """What `recall_at_k` returns.

    Attributes:
        image_to_text: k -> share of images with one of their captions among the k best, 0 to 1.
        text_to_image: k -> share of captions whose image is among the k best.
        image_rank, text_rank: median ranks, 1 is best: of an image's best caption; of a caption's image.
        images, captions: how many there are; a recall depends on it.
        signature: all that must be equal for two results to be comparable.
    """

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    image_rank: float
    text_rank: float
    images: int
    captions: int
    signature: str


def recall_at_k(similarity: Tensor, ks: Sequence[int] = (1, 5, 10), owner: Any = None) -> Retrieval:
    """Recall at k in both directions, several captions per image allowed (Karpathy and Fei-Fei 2015,
    https://arxiv.org/abs/1412.2306, section 4.1: an image is right if any of its captions is).

    Ties count as lost: what is wrong and exactly as similar stands before what is right. A model that says the same of
    everything thus finds nothing (sorting by itself would give it whatever came first).

    Args:
        similarity: (I, T) of every image with every caption, more is more similar; floating, -inf allowed.
        ks: how many may be looked at, each from 1; more than there are is always right.
        owner: (T,) the image of each caption, 0 to I - 1: tensor, array or list; each image has at least one. None:
            caption j is of image j.

    Raises:
        InputError: another shape or type, nan (its place is named), a k below 1, or an owner that is none; an image
            without a caption.
    """
    if not isinstance(similarity, Tensor) or similarity.ndim != 2 or not similarity.is_floating_point():
        found = (f"{similarity.dtype} of shape {tuple(similarity.shape)}" if isinstance(similarity, Tensor)
                 else f"a {type(similarity).__name__}")
        raise InputError(f"similarity is {found}: a floating tensor (images, captions) is needed", source="recall_at_k")
    if not similarity.numel():
        raise InputError(f"similarity has shape {tuple(similarity.shape)}: at least one image and one caption are "
                         "needed", source="recall_at_k")
    listed = tuple(ks) if isinstance(ks, (Sequence, range)) else (ks,)
    if not listed or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in listed):
        raise InputError(f"ks={ks!r}: give whole numbers from 1", source="recall_at_k")
    similarity = similarity.detach()
    owners = _owners(owner, *similarity.shape).to(similarity.device)
    image_ranks, text_ranks = _ranks(similarity, owners)
    images, captions = similarity.shape
    return Retrieval({k: float((image_ranks <= k).mean()) for k in listed},
                     {k: float((text_ranks <= k).mean()) for k in listed},
                     float(np.median(image_ranks)), float(np.median(text_ranks)), images, captions,
                     f"recall|images:{images}|captions:{captions}|ties:lost|v1")


def _owners(owner: Any, images: int, captions: int) -> Tensor:
    """(T,) int64, each image at least once."""
    if owner is None:
        if images != captions:
            raise InputError(f"{images} images and {captions} captions: say with owner= which image each caption is of",
                             source="recall_at_k")
        return torch.arange(images)
    owners = torch.as_tensor(owner)
    if owners.shape != (captions,) or owners.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64,
                                                           torch.uint8):
        raise InputError(f"owner is {owners.dtype} of shape {tuple(owners.shape)}: whole numbers ({captions},) are "
                         "needed, one per caption", source="recall_at_k")
    if not 0 <= int(owners.min()) <= int(owners.max()) < images:
        raise InputError(f"owner goes from {int(owners.min())} to {int(owners.max())}: there are {images} images, 0 to "
                         f"{images - 1}", source="recall_at_k")
    alone = (torch.bincount(owners.cpu().long(), minlength=images) == 0).nonzero().flatten().tolist()
    if alone:
        raise InputError(f"{len(alone)} images have no caption (owner names none of them): {some(alone)}",
                         source="recall_at_k")
    return owners.long()


def _ranks(similarity: Tensor, owners: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ranks from 1: (I,) of the best own caption of each image, (T,) of the image of each caption."""
    images, captions = similarity.shape
    own = similarity[owners, torch.arange(captions, device=owners.device)]  # (T,) of each caption with its image
    best = torch.full((images,), -torch.inf, dtype=own.dtype, device=own.device)
    best = best.scatter_reduce(0, owners, own, "amax")  # (I,)
    # an own caption as good as the best own one is no rival
    friends = torch.zeros(images, dtype=torch.int64, device=own.device)
    friends = friends.index_add(0, owners, (own >= best[owners]).long())
    rivals = torch.zeros(captions, dtype=torch.int64, device=own.device)
    ahead = torch.empty_like(friends)
    for first in range(0, images, ROWS):
        rows = similarity[first:first + ROWS]
        if rows.isnan().any():
            row, column = rows.isnan().nonzero()[0].tolist()
            raise InputError(f"similarity of image {first + row} with caption {column} is nan, which has no rank",
                             source="recall_at_k")
        ahead[first:first + ROWS] = (rows >= best[first:first + ROWS, None]).sum(1)
        rivals += (rows >= own).sum(0)
    return (ahead - friends + 1).cpu().numpy(), rivals.cpu().numpy()  # a caption's own image is among its rivals
