"""The pointing score beside its controls, as bars."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from .figure import new_figure


def pointing_chart(scores: Mapping[str, tuple[float, tuple[float, float] | None]]) -> Figure:
    """Bars of shares with their intervals.

    Args:
        scores: name -> (share of nouns that point at what they name, 95 % interval or None); the first
            is drawn as what is measured, the others as its controls.
    """
    figure = new_figure(90 + 48 * len(scores), 760, layout="constrained")
    axes = figure.subplots()
    for place, (name, (score, interval)) in enumerate(scores.items()):
        axes.barh(place, score, height=0.62, color="#d55e00" if place == 0 else "#b9c4cc")
        right = score
        if interval:
            right = interval[1]
            axes.plot(interval, (place, place), color="black", linewidth=1.5)
        axes.text(right + 0.012, place, f"{score:.3f}", va="center", fontsize=10)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of generated nouns whose peak lies on what they name (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
