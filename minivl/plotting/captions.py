"""A caption word by word: where the model looked when it chose each."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image

from .sheet import Panel, sheet


def caption_sheet(photo: Image.Image, panels: Sequence[Panel], *, caption: str | None = None,
                  logprob: float | None = None, note: str | None = None) -> Figure:
    """The photo, then one panel per word with its attention as heat on the photo's own pixels.

    Args:
        photo: as displayed (`minivl.images.open_photo`), any size.
        panels: (label, heat): first ("<BOS>", None), the photo alone; then each word with its map; last
            "<EOS>", where it was chosen. Heat is (h, w) over the whole photo, at any resolution
            (`sheet.panel_size` is the one drawn), nan where the model did not see the photo.
        caption: the sentence, for the title.
        logprob: its log-probability (natural logarithm, sum over its tokens), for the title.
        note: what is shown, in small print: layer, heads.

    Returns:
        The figure; all panels share one colour scale, from 0 to the largest weight.

    Raises:
        InputError: no panels, or heat that is no map or negative.
    """
    title = None if caption is None else caption or "(an empty caption)"
    subtitle = None if logprob is None else f"log-probability {logprob:.2f}".replace(" -", " \N{MINUS SIGN}")
    return sheet(photo, panels, title=title, subtitle=subtitle, bar="attention weight of a patch", note=note)
