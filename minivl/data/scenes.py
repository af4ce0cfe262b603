"""The built-in data set: drawn pictures of a few things, captions in words, masks of every noun.

Nothing is downloaded or stored. A scene depends on its seed and index alone, not on the process,
on what was drawn before or on the size in pixels (which only decides how finely it is drawn).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index as as_int
from typing import overload

import numpy as np
from PIL import Image

from ..errors import InputError
from .scene_layout import draw_groups
from .scene_phrases import NOUNS, SINGULAR, draw_captions
from .scene_shapes import COLOURS, KINDS, draw_member
from .scene_textures import TEXTURES, draw_background

__all__ = ["COLOURS", "KINDS", "NOUNS", "Scene", "Scenes", "scene"]

_SMALLEST = 32     # pixels a side; below it the small shapes are specks


@dataclass(frozen=True, eq=False)
class Scene:
    """One to three groups of things on a textured background.

    Attributes:
        image: RGB, size x size.
        captions: five different true sentences; lower-case words of [a-z] and single spaces.
        masks: kind (a value of `NOUNS`, such as "star") -> bool (H, W), the visible pixels of all
            things of that kind. Kinds of one scene differ, so a noun names exactly one mask.
    """

    image: Image.Image
    captions: tuple[str, ...]
    masks: dict[str, np.ndarray]

    def named(self) -> tuple[str, ...]:
        """The shortest captions that are true of it: "a tree", "a house", "a hut"; one of every name of every kind."""
        return tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for kind in self.masks for noun in SINGULAR[kind])


def scene(index: int, *, seed: int = 0, size: int = 96) -> Scene:
    """Draw the scene of this number.

    Args:
        index: which scene, 0 or more; there is no upper bound.
        seed: which series of scenes, 0 or more.
        size: side of the picture in pixels, at least 32. The same scene at every size.

    Raises:
        InputError: a negative or fractional index or seed, or a size below 32.
    """
    index, seed, size = (_whole("index", index, 0), _whole("seed", seed, 0),
                         _whole("size", size, _SMALLEST))
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    groups = draw_groups(rng)
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    captions = draw_captions(groups, texture, rng)
    image = draw_background(texture, np.array([group.rgb for group in groups]), size, rng)
    masks: dict[str, np.ndarray] = {}
    for group in groups:
        masks[group.kind] = visible = np.zeros((size, size), dtype=bool)
        for (y, x), angle in zip(group.members, group.angles):
            draw_member(image, visible, group.kind, group.colour, group.rgb, centre=(y * size, x * size),
                        radius=group.radius * size, angle=angle, mirrored=group.mirrored)
    return Scene(image, captions, masks)


class Scenes(Sequence[Scene]):
    """The scenes ``start .. start + count - 1`` of a seed, each drawn when it is asked for.

    Disjoint ranges, or different seeds, serve as training and validation sets. A slice is again a
    ``Scenes``; ``indices`` says which scenes it holds.

    Args:
        count: how many.
        seed: as in `scene`.
        size: as in `scene`.
        start: index of the first.

    Raises:
        InputError: a negative count, start or seed, or a size below 32.
    """

    def __init__(self, count: int, *, seed: int = 0, size: int = 96, start: int = 0) -> None:
        first = _whole("start", start, 0)
        self.indices = range(first, first + _whole("count", count, 0))
        self.seed = _whole("seed", seed, 0)
        self.size = _whole("size", size, _SMALLEST)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, item: int) -> Scene: ...

    @overload
    def __getitem__(self, item: slice) -> Scenes: ...

    def __getitem__(self, item: int | slice) -> Scene | Scenes:
        if isinstance(item, slice):
            part = copy.copy(self)
            part.indices = self.indices[item]
            return part
        return scene(self.indices[item], seed=self.seed, size=self.size)

    def __repr__(self) -> str:
        return f"Scenes({self.indices}, seed={self.seed}, size={self.size})"


def _whole(name: str, value: int, least: int) -> int:
    """``value`` as an int of at least ``least``."""
    try:
        number = as_int(value)
    except TypeError:
        raise InputError(f"{name} of a scene is {value!r}; a whole number is needed") from None
    if number < least:
        raise InputError(f"{name} of a scene is {number}; it must be at least {least}")
    return number
