"""Curves of training runs: losses and scores over steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import InputError
from .figure import new_figure, save_figure

Rows = Sequence[Mapping[str, Any]]

NO_SCORES = ("epoch", "step", "train_loss", "seconds", "lr")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vPX*"


def history_plot(runs: Mapping[str, Rows]) -> Figure:
    """Losses and scores of training runs, one over the other.

    Args:
        runs: name -> rows of its history. A row of a step has "step" and "loss"; a row of an epoch has
            "epoch", "step" and numbers by name: those that end in "_loss" are drawn with the training
            loss, all others but "seconds" on a panel of scores.

    Returns:
        The figure: loss of every step (thin) and its moving mean, validation loss per epoch; and
        scores per epoch on a second axes, where there are any.

    Raises:
        InputError: no runs, or a run without a single row.
    """
    empty = [name for name, rows in runs.items() if not rows]
    if empty or not runs:
        raise InputError("there is no training to draw: the history has no rows",
                         source=empty[0] if empty else None)
    scores = list(dict.fromkeys(name for rows in runs.values() for name in _names(rows)
                                if not name.endswith("_loss")))
    figure = new_figure(480, 1240 if scores else 680, layout="constrained")
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for number, (run, rows) in enumerate(runs.items()):
        # matplotlib hides from legends what begins with an underscore
        prefix = f"{' ' * run.startswith('_')}{run}: " if len(runs) > 1 else ""
        _losses(panels[0], rows, COLOURS[number % len(COLOURS)], prefix)
        for place, name in enumerate(scores):
            steps, values = _series([row for row in rows if "epoch" in row], name)
            if len(steps):
                shade = number if len(runs) > 1 else place
                panels[1].plot(steps, values, color=COLOURS[shade % len(COLOURS)], label=prefix + name,
                               marker=MARKERS[place % len(MARKERS)], markersize=5)
    panels[0].set_ylabel("loss")
    if scores:
        panels[1].set_ylabel("score on validation data")
    for axes in panels:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            for text in axes.legend(frameon=False, fontsize=9).get_texts():
                text.set_parse_math(False)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), parse_math=False)
    return figure


def plot_history(folder: str | os.PathLike[str], rows: Rows) -> Path:
    """Write ``history.png`` into the folder of a run.

    Args:
        folder: of the run; its name is the title.
        rows: its history so far, as for `history_plot`.

    Returns:
        The path of the picture.

    Raises:
        InputError: no rows.
    """
    path = Path(folder) / "history.png"
    save_figure(history_plot({Path(folder).resolve().name: rows}), path)
    return path


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the `window` values around each (fewer at both ends): (n,) -> (n,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, end = np.maximum(places - window // 2, 0), np.minimum(places + (window + 1) // 2, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _losses(axes: Axes, rows: Rows, colour: str, prefix: str) -> None:
    steps, losses = _series([row for row in rows if "epoch" not in row], "loss")
    if len(steps):
        axes.plot(steps, losses, color=colour, linewidth=0.5, alpha=0.35)
        window = max(1, len(losses) // 40)
        axes.plot(steps, moving_mean(losses, window), color=colour, linewidth=1.6,
                  label=f"{prefix}training" + (f" (mean of {window} steps)" if window > 1 else ""))
    for name in [name for name in _names(rows) if name.endswith("_loss")]:
        steps, losses = _series([row for row in rows if "epoch" in row], name)
        axes.plot(steps, losses, color=colour, linestyle="--", marker="o", markersize=4,
                  label=prefix + {"val_loss": "validation"}.get(name, name))


def _names(rows: Rows) -> list[str]:
    """What epochs say beside `NO_SCORES`, in the order of appearance."""
    said = (name for row in rows if "epoch" in row for name, value in row.items()
            if name not in NO_SCORES and isinstance(value, (int, float)) and not isinstance(value, bool))
    return list(dict.fromkeys(said))


def _series(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that hold a finite number of this name."""
    there = [(row["step"], row[name]) for row in rows
             if isinstance(row.get(name), (int, float)) and math.isfinite(row[name])]
    return np.array([step for step, _ in there]), np.array([value for _, value in there], dtype=float)
