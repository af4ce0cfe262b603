"""What a scene holds and where: groups of equal members, placed so that every relation is clear.

All lengths are in units of the picture's side, so that one layout serves every size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .scene_shapes import COLOURS, KINDS

# (count of members, large?) -> range of a member's radius. Crowds have smaller members, so that a
# group covers a small part of the picture; within one count, small and large never meet.
_RADIUS = {
    (1, False): (0.106, 0.118), (1, True): (0.156, 0.178),
    (2, False): (0.090, 0.099), (2, True): (0.125, 0.140),
    (3, False): (0.080, 0.087), (3, True): (0.106, 0.115),
}
_GROUPS = (0.25, 0.45, 0.30)   # chance of one, two, three groups in a scene
_COUNTS = (0.62, 0.23, 0.15)   # chance of one, two, three members in a group
_REACH = 1.18                  # a turned silhouette stays within this many radii of its centre
_STEP = 2.5                   # distance between neighbours of a group, in radii
_BORDER = 0.015                # free strip along the picture's edge
_GAP = 0.045                   # free strip between two groups along the axis that separates them
_CLEAR = 0.07                  # by how much one axis separates two groups better than the other
_TRIES = 48                    # placements drawn at once


@dataclass(frozen=True)
class Group:
    """One to three equal members in a row or a column: what a noun of a caption names.

    Attributes:
        kind: key of `KINDS`.
        colour: key of `COLOURS`.
        rgb: the colour as drawn, a little off the named one; 0..255.
        large: whether captions call it large (True) or small.
        radius: of one member.
        angles: turn of each member in radians; their number is the count.
        mirrored: drawn left-right reversed.
        column: several members stand below each other, not side by side.
        centre: (y, x) of the middle of the group.
    """

    kind: str
    colour: str
    rgb: tuple[int, int, int]
    large: bool
    radius: float
    angles: tuple[float, ...]
    mirrored: bool
    column: bool
    centre: tuple[float, float] = (0.5, 0.5)

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.angles)

    @property
    def half(self) -> tuple[float, float]:
        """Half the (height, width) of a box that surely holds all members."""
        short = _REACH * self.radius
        long = short + (self.count - 1) * _STEP * self.radius / 2
        return (long, short) if self.column else (short, long)

    @property
    def members(self) -> list[tuple[float, float]]:
        """(y, x) of the centre of each member, from left to right or from top to bottom."""
        y, x = self.centre
        offsets = [(i - (self.count - 1) / 2) * _STEP * self.radius for i in range(self.count)]
        return [(y + offset, x) if self.column else (y, x + offset) for offset in offsets]

    @property
    def area(self) -> float:
        """Rough share of the picture, for telling which group is the most prominent."""
        return self.count * self.radius ** 2


def relation(a: Group, b: Group) -> str:
    """How ``a`` lies to ``b``: "left", "right", "above" or "below".

    The axis is the one along which the gap between the two boxes is wider, so everything of ``a``
    lies on the said side of everything of ``b``.
    """
    dy, dx = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    gap_y = abs(dy) - a.half[0] - b.half[0]
    gap_x = abs(dx) - a.half[1] - b.half[1]
    if gap_y > gap_x:
        return "above" if dy < 0 else "below"
    return "left" if dx < 0 else "right"


def where(group: Group) -> tuple[str, str]:
    """(row, column) of the group's middle: "top", "bottom" or "", and "left", "right" or ""."""
    y, x = group.centre
    return (("top" if y < 0.38 else "bottom" if y > 0.62 else ""),
            ("left" if x < 0.38 else "right" if x > 0.62 else ""))


def draw_groups(rng: np.random.Generator) -> list[Group]:
    """One to three placed groups of different kinds, the most prominent first.

    Every pair has a gap along one axis that is clearly wider than along the other, so that one
    spatial relation describes it. What cannot be placed is drawn anew; small groups always fit.
    """
    number = 1 + int(rng.choice(3, p=_GROUPS))
    while True:
        kinds = rng.choice(len(KINDS), size=number, replace=False)
        groups = [_draw_group(rng, list(KINDS)[kind]) for kind in kinds]
        centres = _place(rng, groups)
        if centres is not None:
            placed = [replace(group, centre=(float(y), float(x))) for group, (y, x) in zip(groups, centres)]
            return sorted(placed, key=lambda group: -group.area)


def _draw_group(rng: np.random.Generator, kind: str) -> Group:
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    shade = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, size=3), 0, 255)
    count = 1 + int(rng.choice(3, p=_COUNTS))
    large = bool(rng.random() < 0.5)
    low, high = _RADIUS[count, large]
    return Group(kind, colour, (int(shade[0]), int(shade[1]), int(shade[2])), large,
                 radius=float(rng.uniform(low, high)),
                 angles=tuple(float(angle) for angle in rng.uniform(-0.12, 0.12, size=count)),
                 mirrored=bool(rng.random() < 0.5), column=bool(rng.random() < 0.4))


def _place(rng: np.random.Generator, groups: list[Group]) -> np.ndarray | None:
    """Centres (groups, 2) of the first of many random placements in which all pairs are clear."""
    half = np.array([group.half for group in groups])                         # (G, 2)
    room = 1 - 2 * (half + _BORDER)
    centres = half + _BORDER + rng.random((_TRIES, len(groups), 2)) * room    # (tries, G, 2)
    good = np.ones(_TRIES, dtype=bool)
    for i in range(len(groups)):
        for j in range(i):
            gaps = np.abs(centres[:, i] - centres[:, j]) - half[i] - half[j]  # (tries, 2)
            good &= (gaps.max(axis=1) >= _GAP) & (np.abs(gaps[:, 0] - gaps[:, 1]) >= _CLEAR)
    found = int(good.argmax())
    return centres[found] if good[found] else None
