"""The heads of a layer side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .sheet import Panel, sheet


def attention_sheet(photo: Image.Image, mean: np.ndarray, heads: Sequence[np.ndarray] = (), *,
                    title: str | None = None, note: str | None = None) -> Figure:
    """The photo, the mean over the heads, and every head, on one colour scale.

    Args:
        photo: as displayed (`minivl.images.open_photo`), any size.
        mean: (h, w) over the whole photo, at any resolution (`sheet.panel_size` of len(heads) + 2 panels is
            the one drawn), nan where the model did not see the photo.
        heads: the same per head; none: the mean alone.
        title: e.g. the name of the photo.
        note: what is shown, in small print: layer, row.

    Raises:
        InputError: heat that is no map, or negative.
    """
    mean_of = f"mean of {len(heads)} heads" if len(heads) else "mean of the heads"
    panels: list[Panel] = [("photo", None), (mean_of, mean)]
    panels += [(f"head {number}", head) for number, head in enumerate(heads)]
    return sheet(photo, panels, title=title, bar="attention weight of a patch", note=note)
