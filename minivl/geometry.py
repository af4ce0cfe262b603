"""Where a pixel or a patch of the model's tensor lies in the photo it was made from.

Coordinates are continuous and count from the top left corner: pixel k covers [k, k + 1), its centre
is k + 0.5. Order is (y, x), (height, width), (top, left, bottom, right).

A photo of ``source`` pixels is resized to ``resized``, then cut (or padded with black) to the window of
``size`` pixels that starts at ``crop``. A resampling filter maps the edges of the picture onto each other,
so each axis has its own exact scale, source / resized, also where a side was rounded to a whole pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index
from typing import TypeVar

import numpy as np

from .errors import InputError

Pair = tuple[int, int]
Box = tuple[float, float, float, float]
T = TypeVar("T")  # a number, a numpy array or a tensor: whatever adds and multiplies


@dataclass(frozen=True)
class Geometry:
    """The way from one photo to its tensor, as plain whole numbers.

    Args:
        source: (H, W) of the photo as displayed (EXIF applied).
        resized: (H, W) after the resize.
        crop: (top, left) of the tensor's first pixel in the resized picture; negative where the
            centre crop padded.
        size: (H, W) of the tensor.
        patch: (height, width) of one cell in tensor pixels: the patch of a ViT, the stride of a CNN.
        content: (H, W) of the tensor's top left part that is picture, where a batch was padded at
            right and bottom; None: nothing was padded.

    Raises:
        InputError: a side that is not a positive whole number, or a tensor that shows no picture.
    """

    source: Pair
    resized: Pair
    crop: Pair
    size: Pair
    patch: Pair
    content: Pair | None = None

    def __post_init__(self) -> None:
        for name in ("source", "resized", "crop", "size", "patch", "content"):
            pair = getattr(self, name)
            if name == "content" and pair is None:
                continue
            whole = isinstance(pair, tuple) and [type(side) for side in pair] == [int, int]
            if not whole or (name != "crop" and min(pair) < 1):
                wanted = "whole numbers" if name == "crop" else "positive whole numbers (height, width)"
                raise InputError(f"geometry {name} is {pair!r}, it must be two {wanted}")
        for axis, side in enumerate(("rows", "columns")):
            first, end = self.picture(axis)
            if first >= end:
                raise InputError(f"a tensor of size {self.size} at crop {self.crop} shows no {side} of a "
                                 f"picture of {self.resized} pixels")

    @property
    def grid(self) -> Pair:
        """(gh, gw), the number of cells; a side that is no multiple of the patch has a last, cut cell."""
        return -(-self.size[0] // self.patch[0]), -(-self.size[1] // self.patch[1])

    @property
    def scale(self) -> tuple[float, float]:
        """Source pixels per tensor pixel, (vertical, horizontal)."""
        return self.source[0] / self.resized[0], self.source[1] / self.resized[1]

    def picture(self, axis: int) -> Pair:
        """First tensor pixel along an axis (0 down, 1 right) that is picture, and the one after the last."""
        end = min(self.size[axis], self.resized[axis] - self.crop[axis])
        if self.content is not None:
            end = min(end, self.content[axis])
        return max(0, -self.crop[axis]), end

    def cells(self, axis: int) -> Pair:
        """First cell along an axis that is at least partly picture, and the one after the last."""
        first, end = self.picture(axis)
        return first // self.patch[axis], -(-end // self.patch[axis])

    @property
    def valid(self) -> np.ndarray:
        """Which cells are at least partly picture: (gh, gw) bool."""
        valid = np.zeros(self.grid, dtype=bool)
        valid[slice(*self.cells(0)), slice(*self.cells(1))] = True
        return valid

    @property
    def window(self) -> Box:
        """(top, left, bottom, right) in source pixels: all that the tensor sees of the photo."""
        (top, bottom), (left, right) = self.picture(0), self.picture(1)
        return *self.to_source(float(top), float(left)), *self.to_source(float(bottom), float(right))

    def box(self, i: int, j: int) -> Box:
        """What cell (i, j) sees of the photo.

        Args:
            i: row of the cell, 0 to gh - 1.
            j: column of the cell, 0 to gw - 1.

        Returns:
            (top, left, bottom, right) in float source pixels, clipped to `window`. A cell that is
            padding only has a box without area.

        Raises:
            IndexError: no such cell (negative numbers do not count from the end).
        """
        edges = []
        for axis, cell in enumerate((index(i), index(j))):
            if not 0 <= cell < self.grid[axis]:
                raise IndexError(f"cell ({i}, {j}) is outside the grid of {self.grid[0]} x {self.grid[1]}")
            first, end = self.picture(axis)
            edges.append([float(min(max(tensor_pixel, first), end))
                          for tensor_pixel in (cell * self.patch[axis], (cell + 1) * self.patch[axis])])
        (top, bottom), (left, right) = edges
        return *self.to_source(top, left), *self.to_source(bottom, right)

    def to_source(self, y: T, x: T) -> tuple[T, T]:
        """Source coordinates of a point of the tensor; not clipped.

        Args:
            y, x: float pixels of the tensor; numbers, arrays or tensors.

        Returns:
            (y, x) in float source pixels.
        """
        return ((y + self.crop[0]) * self.source[0] / self.resized[0],  # type: ignore
                (x + self.crop[1]) * self.source[1] / self.resized[1])  # type: ignore

    def to_tensor(self, y: T, x: T) -> tuple[T, T]:
        """Tensor coordinates of a point of the photo, the inverse of `to_source`; not clipped.

        Args:
            y, x: float pixels of the source; numbers, arrays or tensors.

        Returns:
            (y, x) in float pixels of the tensor.
        """
        return (y * self.resized[0] / self.source[0] - self.crop[0],  # type: ignore
                x * self.resized[1] / self.source[1] - self.crop[1])  # type: ignore

    def padded(self, size: Pair) -> Geometry:
        """The same picture in a tensor that was padded to ``size`` (H, W) at right and bottom.

        Raises:
            InputError: ``size`` is smaller than the tensor.
        """
        if size[0] < self.size[0] or size[1] < self.size[1]:
            raise InputError(f"a tensor of size {self.size} cannot be padded to {size}")
        return replace(self, size=size, content=self.content or self.size)
