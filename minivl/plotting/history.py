"""Curves of training runs: losses and scores over steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from ..errors import InputError
from .figure import leading, new_figure, save_figure, text_width, wrap

Rows = Sequence[Mapping[str, Any]]

NO_SCORES = ("epoch", "step", "train_loss", "seconds", "lr")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
MARKERS = "osD^vPX*"
WIDTH, ALONE, SMALL = 620, 680, 9  # pixels of a panel among others, and alone; points of legends


def history_plot(runs: Mapping[str, Rows]) -> Figure:
    """Losses and scores of training runs, one over the other.

    Args:
        runs: name -> rows of its history. A row of a step has "step", "loss" and, in self-critical training,
            "reward"; a row of an epoch has "epoch", "step" and numbers by name: those that end in "_loss" are drawn
            with the training loss, all others but "seconds" on a panel of scores.

    Returns:
        The figure: loss of every step (thin) and its moving mean, validation loss per epoch; and
        scores per epoch on axes of their own, where there are any. Of a run that is rewarded the mean reward of each
        step is drawn, on axes between these, in the place of its training loss: that is another quantity than the
        validation loss, and one that does not say how good captions are. Colours are runs, where there are several; a
        legend under the panels tells which.

    Raises:
        InputError: no runs, or a run without a single row.
    """
    empty = [name for name, rows in runs.items() if not rows]
    if empty or not runs:
        raise InputError("there is no training to draw: the history has no rows",
                         source=empty[0] if empty else None)
    scores = list(dict.fromkeys(name for rows in runs.values() for name in _names(rows)
                                if not name.endswith("_loss")))
    rewarded = [any("reward" in row for row in rows) for rows in runs.values()]
    lost = not all(rewarded) or any(name.endswith("_loss") for rows in runs.values() for name in _names(rows))
    labels = ["loss"] * lost + ["reward of a step, mean"] * any(rewarded) + ["score on validation data"] * bool(scores)
    named = ["\n".join(wrap(run, len(labels) * WIDTH - 80, SMALL)) for run in runs] if len(runs) > 1 else []
    width = max(len(labels), 2 if named else 1) * WIDTH if named or len(labels) > 1 else ALONE
    columns = max(1, int((width - 40) // (max(map(_width, named), default=0) + 60)))
    lines = sum(max(name.count("\n") + 1 for name in named[first:first + columns])
                for first in range(0, len(named), columns))
    figure = new_figure(480 + lines * leading(SMALL), width, layout="constrained")
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    colours = COLOURS if len(runs) <= len(COLOURS) else colormaps["turbo"](np.linspace(0.05, 0.95, len(runs)))
    for colour, rows, by_reward in zip(colours, runs.values(), rewarded):
        if by_reward:
            _steps(panels[int(lost)], rows, "reward", colour, exact=len(runs) == 1)
        else:
            _steps(panels[0], rows, "loss", colour, exact=len(runs) == 1)
        _validation(panels[0], rows, colour)
        for place, name in enumerate(scores):
            steps, values = _series([row for row in rows if "epoch" in row], name)
            if len(steps):
                panels[-1].plot(steps, values, color=colour if named else COLOURS[place % len(COLOURS)], label=name,
                                marker=MARKERS[place % len(MARKERS)], markersize=5)
    for axes, label in zip(panels, labels):
        axes.set_ylabel(label)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        _legend(axes, plain=len(runs) > 1)
    if named:
        handles = [Line2D([], [], color=colour, linewidth=3) for colour in colours[:len(named)]]
        _as_written(figure.legend(handles, [f"{' ' * name.startswith('_')}{name}" for name in named], frameon=False,
                                  fontsize=SMALL, loc="outside lower center", ncols=columns))
    else:
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


def _steps(axes: Axes, rows: Rows, name: str, colour: Any, exact: bool) -> None:
    """A number of every step; exact: say how many steps the moving mean is of, which runs may differ in."""
    steps, values = _series([row for row in rows if "epoch" not in row], name)
    if len(steps):
        axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.35)
        window = max(1, len(values) // 40)
        mean = f"mean of {window} steps" if exact else "moving mean"
        axes.plot(steps, moving_mean(values, window), color=colour, linewidth=1.6,
                  label="training" + (f" ({mean})" if window > 1 or not exact else ""))


def _validation(axes: Axes, rows: Rows, colour: Any) -> None:
    """The losses of epochs."""
    for name in [name for name in _names(rows) if name.endswith("_loss")]:
        steps, losses = _series([row for row in rows if "epoch" in row], name)
        axes.plot(steps, losses, color=colour, linestyle="--", marker="o", markersize=4,
                  label={"val_loss": "validation"}.get(name, name))


def _legend(axes: Axes, plain: bool) -> None:
    """What the curves are, each once; plain: in grey, where the colours are those of runs."""
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles))
    if not found:
        return
    shown = [Line2D([], [], color="0.35", linestyle=line.get_linestyle(), linewidth=line.get_linewidth(),
                    marker=line.get_marker(), markersize=line.get_markersize()) if plain else line
             for line in found.values()]
    _as_written(axes.legend(shown, list(found), frameon=False, fontsize=SMALL))


def _as_written(legend: Legend) -> None:
    """A dollar sign in a name is a dollar sign."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _width(name: str) -> float:
    return max(text_width(line, SMALL) for line in name.split("\n"))


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
