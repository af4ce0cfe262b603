"""The silhouettes and colours of scenes, and drawing them, antialiased, onto a picture.

Shapes are polygons in the coordinates Pillow draws in, (x, y) with y down, inside [-1, 1] squared.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Part = tuple[np.ndarray, str]   # polygon (n, 2) and the paint that fills it

COLOURS: Mapping[str, RGB] = MappingProxyType({
    "red": (215, 38, 38), "orange": (245, 135, 25), "yellow": (246, 218, 50),
    "green": (45, 160, 65), "blue": (40, 95, 220), "purple": (128, 50, 172),
    "pink": (245, 135, 190), "white": (246, 246, 244), "black": (24, 24, 28),
})
_SCALE = 4                           # drawn this much larger, then averaged down
_SHADOW = [level * 2 // 5 for level in range(256)]
_RIM = 0.1                           # width of the dark rim, in radii
_INK: RGB = (18, 18, 24)
_BROWN: RGB = (112, 72, 40)
_GOLD: RGB = (250, 205, 40)


def _disc(x: float, y: float, width: float, height: float | None = None, points: int = 32) -> np.ndarray:
    """An ellipse around (x, y) with these half axes, as a polygon."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + width * np.cos(turn), y + (height or width) * np.sin(turn)], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float)


def _star() -> np.ndarray:
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    reach = np.where(np.arange(10) % 2 == 0, 1.06, 0.47)
    return np.stack([reach * np.cos(turn), reach * np.sin(turn) + 0.06], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 15.5], axis=1)


def _crescent() -> np.ndarray:
    """The part of a disc that a second disc, moved to the right, leaves uncovered."""
    shift, inner = 0.52, 0.78
    tip = np.arccos((1 + shift ** 2 - inner ** 2) / (2 * shift))    # where the two circles cross
    lower = np.arctan2(np.sin(tip), np.cos(tip) - shift)
    outside = np.linspace(tip, 2 * np.pi - tip, 30)
    inside = np.linspace(2 * np.pi - lower, lower, 22)[1:-1]       # the tips are there already
    curve = np.concatenate([np.stack([np.cos(outside), np.sin(outside)], axis=1),
                            np.stack([shift + inner * np.cos(inside), inner * np.sin(inside)], axis=1)])
    return curve + (0.2, 0.0)


def _cross(arm: float = 0.36) -> np.ndarray:
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    turns = [np.array([(0, -1), (1, 0)]), np.array([(-1, 0), (0, -1)]), np.array([(0, 1), (-1, 0)])]
    return np.concatenate([quarter] + [quarter @ turn.T for turn in turns])


def _flower() -> list[Part]:
    turn = np.arange(6) * np.pi / 3
    petals = [(_disc(0.6 * np.cos(t), 0.6 * np.sin(t), 0.4), "main") for t in turn]
    return petals + [(_disc(0, 0, 0.4), "main"), (_disc(0, 0, 0.3), "pistil")]


# The silhouette is the union of the parts; later parts cover earlier ones.
KINDS: Mapping[str, tuple[Part, ...]] = MappingProxyType({
    "circle": ((_disc(0, 0, 0.95), "main"),),
    "square": ((_polygon((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)), "main"),),
    "triangle": ((_polygon((0, -0.98), (1.02, 0.82), (-1.02, 0.82)), "main"),),
    "star": ((_star(), "main"),),
    "heart": ((_heart(), "main"),),
    "moon": ((_crescent(), "main"),),
    "cross": ((_cross(), "main"),),
    "arrow": ((_polygon((-1, -0.3), (0.1, -0.3), (0.1, -0.85), (1.02, 0), (0.1, 0.85), (0.1, 0.3),
                        (-1, 0.3)), "main"),),
    "house": ((_polygon((-0.78, -0.2), (0.78, -0.2), (0.78, 0.98), (-0.78, 0.98)), "main"),
              (_polygon((-1.04, -0.12), (0, -0.98), (1.04, -0.12)), "dark"),
              (_polygon((-0.19, 0.38), (0.19, 0.38), (0.19, 0.98), (-0.19, 0.98)), "dark")),
    "tree": ((_polygon((-0.2, 0.3), (0.2, 0.3), (0.26, 1.0), (-0.26, 1.0)), "bark"),
             (_disc(-0.46, 0.0, 0.48), "main"), (_disc(0.46, 0.0, 0.48), "main"),
             (_disc(0, -0.42, 0.56), "main"), (_disc(0, 0.08, 0.42), "main")),
    "fish": ((_polygon((0.25, 0), (1.02, -0.66), (0.84, 0), (1.02, 0.66)), "dark"),
             (_disc(-0.3, 0, 0.74, 0.56), "main"), (_disc(-0.66, -0.12, 0.15), "eye"),
             (_disc(-0.68, -0.12, 0.07), "pupil")),
    "flower": tuple(_flower()),
})


def _widened(polygon: np.ndarray) -> np.ndarray:
    """The polygon (n, 2) with every side moved outward by the rim; long tips are cut short."""
    sides = np.roll(polygon, -1, axis=0) - polygon
    outward = np.stack([sides[:, 1], -sides[:, 0]], axis=1) / np.linalg.norm(sides, axis=1, keepdims=True)
    x, y = polygon.T
    if np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) < 0:
        outward = -outward                                          # its points run the other way round
    before = np.roll(outward, 1, axis=0)
    move = (before + outward) / (1 + np.sum(before * outward, axis=1, keepdims=True)).clip(min=0.05)
    return polygon + _RIM * move * np.minimum(1, 1.6 / np.linalg.norm(move, axis=1, keepdims=True))


_RIMS = {kind: tuple(_widened(polygon) for polygon, _ in parts) for kind, parts in KINDS.items()}


def _paints(colour: str, rgb: RGB) -> dict[str, RGB]:
    """The colour of each kind of part of a shape of this colour."""
    dark = (54, 54, 60) if colour == "black" else tuple(int(channel * 0.72) for channel in rgb)
    return {"main": rgb, "dark": (dark[0], dark[1], dark[2]), "bark": _BROWN,
            "pistil": _BROWN if colour in ("yellow", "orange") else _GOLD,
            "eye": (40, 40, 40) if colour == "white" else (250, 250, 250),
            "pupil": (250, 250, 250) if colour == "white" else (20, 20, 20)}


def draw_member(image: Image.Image, visible: np.ndarray, kind: str, colour: str, rgb: RGB, *,
                centre: tuple[float, float], radius: float, angle: float, mirrored: bool) -> None:
    """Draw one shape with a dark rim and a soft shadow, and mark its pixels (the rim is part of it).

    Args:
        image: RGB, drawn on in place.
        visible: bool (H, W); pixels that the shape covers by half or more become True, in place.
        kind: key of `KINDS`.
        colour: name in `COLOURS`; decides the paint of details.
        rgb: the main paint.
        centre: (y, x) in pixels.
        radius: in pixels.
        angle: turn in radians.
        mirrored: reversed left to right before it is turned.
    """
    cos, sin = radius * _SCALE * np.cos(angle), radius * _SCALE * np.sin(angle)
    flip = -1 if mirrored else 1
    turn = np.array([[flip * cos, flip * sin], [-sin, cos]])
    reach = int(np.ceil(1.35 * radius)) + 1
    top, left = int(centre[0]) - reach, int(centre[1]) - reach
    side = 2 * reach + 1
    middle = ((centre[1] - left) * _SCALE, (centre[0] - top) * _SCALE)
    large = (side * _SCALE, side * _SCALE)
    cover, paint = Image.new("L", large), Image.new("RGB", large, rgb)
    on_cover, on_paint = ImageDraw.Draw(cover), ImageDraw.Draw(paint)
    paints = _paints(colour, rgb)
    for rim in _RIMS[kind]:
        points = (rim @ turn + middle).ravel().tolist()
        on_cover.polygon(points, fill=255)
        on_paint.polygon(points, fill=_INK)
    for polygon, name in KINDS[kind]:
        on_paint.polygon((polygon @ turn + middle).ravel().tolist(), fill=paints[name])
    cover, paint = cover.reduce(_SCALE), paint.reduce(_SCALE)
    drop = max(1, round(0.14 * radius))
    image.paste((12, 12, 20), (left + drop, top + drop), cover.point(_SHADOW))
    image.paste(paint, (left, top), cover)
    _mark(visible, np.asarray(cover) >= 128, top, left)


def _mark(visible: np.ndarray, shape: np.ndarray, top: int, left: int) -> None:
    """Set ``visible`` where ``shape``, its corner laid at (top, left), is True; it may stick out."""
    height, width = visible.shape
    target = visible[max(0, top):top + shape.shape[0], max(0, left):left + shape.shape[1]]
    target |= shape[max(0, -top):height - top, max(0, -left):width - left]
