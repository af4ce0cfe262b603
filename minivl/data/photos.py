"""Photos as tensors, batch by batch, read by worker processes where that is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from ..geometry import Pair
from ..images import Photo, Preprocessing, batch
from .workers import fetched


def photo_batches(photos: Sequence[Photo], preprocessing: Preprocessing, cell: int | Pair, size: int = 64, *,
                  workers: int = 0) -> Iterator[Tensor]:
    """Photos as the input of a model, in their order.

    Args:
        photos: files or PIL images.
        preprocessing: what the model wants.
        cell: (height, width) in pixels of a cell of its grid, see `minivl.images.batch`.
        size: photos of a batch; the last one may have fewer.
        workers: processes that read; 0: this one.

    Yields:
        (B, 3, H, W) float32.

    Raises:
        InputError: a photo that does not open, whichever process read it; size below 1.
    """
    if size < 1:
        raise InputError(f"size={size} must be at least 1", source="photo_batches")
    parts = [photos[first:first + size] for first in range(0, len(photos), size)]
    yield from fetched(_Read(preprocessing, cell), parts, workers=workers)


@dataclass(frozen=True)
class _Read:
    """Makes of some photos a batch; worker processes get a copy."""

    preprocessing: Preprocessing
    cell: int | Pair

    def __call__(self, photos: Sequence[Photo]) -> Tensor:
        return batch(photos, self.preprocessing, self.cell)[0]
