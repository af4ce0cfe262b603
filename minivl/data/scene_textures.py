"""The backgrounds of scenes: two muted tones blended by a texture, in contrast to what lies on them."""

from __future__ import annotations

import numpy as np
from PIL import Image

TEXTURES = ("plain", "cloudy", "striped", "dotted", "checked")
_CANDIDATES = 24
_GRAIN = 96      # the grain is drawn at this many points a side, whatever the size of the picture


def draw_background(texture: str, avoid: np.ndarray, size: int, rng: np.random.Generator) -> Image.Image:
    """A textured RGB picture in tones that differ from the given colours.

    Args:
        texture: one of `TEXTURES`.
        avoid: (n, 3) colours, 0..255, to be told from the background.
        size: side in pixels. The generator is used alike for every size.
        rng: source of tones, texture and grain.

    Returns:
        RGB, size x size.
    """
    tones = _tones(avoid, rng)
    blend = _blend(texture, size, rng)[..., None]                              # (H, W, 1)
    grain = _resized(rng.normal(0, 3.5, (_GRAIN, _GRAIN)), size)[..., None]
    pixels = tones[0] + blend * (tones[1] - tones[0]) + grain                  # (H, W, 3)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _tones(avoid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two muted tones (2, 3): the first random pair that is far from all colours, or the farthest."""
    grey = rng.uniform(85, 205, (_CANDIDATES, 1))
    tint = rng.normal(0, 1, (_CANDIDATES, 3))
    first = grey + 11 * (tint - tint.mean(axis=1, keepdims=True))
    step = rng.uniform(20, 36, (_CANDIDATES, 1)) * np.where(grey > 140, -1, 1)
    pairs = np.stack([first, first + step], axis=1).astype(np.float32)         # (candidates, 2, 3)
    nearest = np.linalg.norm(pairs[:, :, None] - avoid, axis=-1).min(axis=(1, 2))
    far = nearest >= 105
    return pairs[far.argmax() if far.any() else nearest.argmax()]


def _blend(texture: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Weight (H, W) in 0..1 of the second tone."""
    angle, phase, period = rng.uniform(0, np.pi), rng.random(2), rng.uniform(0.11, 0.16)
    clouds = rng.random((6, 6))
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = at[:, None], at[None, :]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = cos * x + sin * y, cos * y - sin * x                       # turned coordinates (H, W)
    if texture == "plain":
        return (along - along.min()) / (along.max() - along.min())
    if texture == "cloudy":
        return np.clip((_resized(clouds, size) - 0.5) * 1.4 + 0.5, 0, 1)
    u = np.sin(2 * np.pi * (along / np.float32(period) + np.float32(phase[0])))
    sharpness = np.float32(period * size / 8)                                  # edges about one pixel wide
    if texture == "striped":
        return np.clip(u * sharpness + 0.5, 0, 1)
    v = np.sin(2 * np.pi * (across / np.float32(period) + np.float32(phase[1])))
    if texture == "dotted":
        return np.clip((u + v - 0.75) * sharpness + 0.5, 0, 1)
    return np.clip(u * v * sharpness * 2 + 0.5, 0, 1)


def _resized(grid: np.ndarray, size: int) -> np.ndarray:
    """``grid`` (n, n) as float32 (size, size), interpolated smoothly."""
    values = grid.astype(np.float32)
    if values.shape == (size, size):
        return values
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC))
