"""The bootstrap: how far a share moves when other items of the same kind are drawn.

Efron, Bootstrap Methods: Another Look at the Jackknife (Annals of Statistics 7, 1979).
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError


def resampled(counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Shares of hits over as many items as there are, drawn with replacement.

    For a given seed the items drawn depend on their number alone, which is what pairs two scores.

    Args:
        counts: (items, 2) whole numbers: hits, and of how many.
        samples: draws.
        seed: of the draws.

    Returns:
        (samples,) float64; nan for a draw whose items have nothing to hit.

    Raises:
        InputError: samples below 1.
    """
    if samples < 1:
        raise InputError(f"samples={samples} must be at least 1", source="bootstrap")
    draw = np.random.default_rng(seed)
    sums = np.stack([counts[draw.integers(0, len(counts), len(counts))].sum(axis=0) for _ in range(samples)])
    return sums[:, 0] / np.where(sums[:, 1], sums[:, 1], np.nan)


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentiles between which the middle `level` of the values lie; nan is left out."""
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
