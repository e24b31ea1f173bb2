"""95 % confidence intervals of metrics: a bootstrap over images, because the masks of an image are not independent.

Reference: Efron and Tibshirani 1993, the percentile interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000
Interval = list[float]
"""The lower and the upper end; a list, as JSON has it."""


def draw_images(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Int[np.ndarray, "R N"]:
    """Returns how often each of N images occurs in each of R samples of N images, drawn with replacement."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples)])


def percentile_interval(resampled: Float[np.ndarray, " R"]) -> Interval | None:
    """Returns the interval that holds 95 % of a metric's values over samples; None if it has none.

    Args:
        resampled: the metric of each sample; NaN where it is not defined, and then the sample is left out.
    """
    defined = resampled[~np.isnan(resampled)]
    return np.quantile(defined, (0.025, 0.975)).tolist() if len(defined) else None


def mean_interval(sums: Sequence[float], counts: Sequence[int]) -> Interval | None:
    """Returns the interval of a mean over the masks of all images.

    Args:
        sums: the sum over the masks of each image.
        counts: the number of masks of each image.
    """
    draws = draw_images(len(sums))
    total, masks = draws @ np.asarray(sums, float), draws @ np.asarray(counts, float)
    return percentile_interval(np.divide(total, masks, out=np.full(len(draws), np.nan), where=masks > 0))


def show_estimate(value: float | None, interval: Interval | None = None, digits: int = 1, factor: float = 1) -> str:
    """Formats a metric, times a factor, with its interval for a table: 54.1 [52.0, 56.3]; empty without a value."""
    if value is None:
        return ""
    shown = f"{factor * value:.{digits}f}"
    if interval is None:
        return shown
    return f"{shown} [{', '.join(f'{factor * end:.{digits}f}' for end in interval)}]"
