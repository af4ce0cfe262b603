"""Heat on a photo: weights as colour over the very pixels they belong to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from PIL import Image

from ..errors import InputError
from ..geometry import Pair

COLOURS = colormaps["inferno"]  # perceptually uniform: equal steps of weight look equal
DARKEST = 0.3            # where in it weight 0 stands: what is below is hard to tell from a shadow
OPAQUE = 0.9             # of the largest weight; the photo stays visible below
SATURATION, LIGHT = 0.5, 0.7  # what a panel with heat leaves of the photo's colours and brightness
UNSEEN = 0.35            # brightness of what the model did not see
STRIPE = 8               # pixels; marks the unseen also where a photo is dark itself


def overlay(photo: np.ndarray, heat: np.ndarray, most: float) -> np.ndarray:
    """A photo with heat on it.

    The colour runs from dark to bright with the weight, and covers the photo the more the larger the weight
    is. Where heat is nan the photo is dark, grey and striped.

    Args:
        photo: (h, w, 3) uint8.
        heat: (h, w) weights, not negative; nan: not seen.
        most: the weight of the brightest colour; what is above it has that colour, too.

    Returns:
        (h, w, 3) uint8.
    """
    seen = np.isfinite(heat)
    share = np.clip(np.where(seen, heat, 0) / most, 0, 1)  # (h, w)
    colour = COLOURS(DARKEST + (1 - DARKEST) * share)[..., :3] * 255  # (h, w, 3)
    grey = photo @ np.array([0.299, 0.587, 0.114])  # (h, w), luma of ITU-R BT.601
    muted = LIGHT * (grey[..., None] + SATURATION * (photo - grey[..., None]))
    alpha = OPAQUE * np.sqrt(share)[..., None]
    mixed = (1 - alpha) * muted + alpha * colour
    rows, columns = np.indices(heat.shape)
    stripes = np.where((rows + columns) // STRIPE % 2, 26, 0)
    mixed[~seen] = (UNSEEN * grey + stripes)[~seen][:, None]
    return mixed.round().clip(0, 255).astype(np.uint8)


def scale_of(heats: Iterable[np.ndarray]) -> float:
    """The end of the common colour scale of several maps: the largest weight, or 1 where all are 0.

    Raises:
        InputError: a map with negative weights.
    """
    most = 0.0
    for heat in heats:
        weights = heat[np.isfinite(heat)]
        if weights.size and weights.min() < 0:
            raise InputError(f"heat holds the negative weight {weights.min():.3g}; the scale begins at 0")
        most = max(most, float(weights.max(initial=0)))
    return most or 1.0


def colours(most: float) -> ScalarMappable:
    """What a colour bar shows: the colours of `overlay` on a grey photo, from 0 to `most`."""
    grey = np.full((1, 256, 3), 128, dtype=np.uint8)
    ramp = overlay(grey, np.linspace(0, most, 256)[None], most)[0] / 255
    return ScalarMappable(Normalize(0, most), ListedColormap(ramp))


def photo_at(photo: Image.Image, size: Pair) -> np.ndarray:
    """A photo at (h, w) pixels: (h, w, 3) uint8."""
    photo = photo.convert("RGB")
    return np.asarray(photo.resize(size[::-1], Image.Resampling.LANCZOS))


def heat_at(heat: np.ndarray, size: Pair) -> np.ndarray:
    """A map over the whole photo at (h, w) pixels: means over areas, nan where less than half was seen.

    Raises:
        InputError: not two-dimensional, or empty.
    """
    heat = np.asarray(heat, dtype=np.float32)
    if heat.ndim != 2 or not heat.size:
        raise InputError(f"heat of shape {heat.shape}: (height, width) over the photo is needed")
    if heat.shape == size:
        return heat
    seen = np.isfinite(heat)
    total, area = (np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BOX))
                   for plane in (np.where(seen, heat, 0).astype(np.float32), seen.astype(np.float32)))
    return np.where(area >= 0.5, total / np.maximum(area, 0.5), np.nan)
