"""Metrics of a single mask, in pure NumPy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool


def mask_iou(
    predicted: Bool[np.ndarray, "H W"],
    ground_truth: Bool[np.ndarray, "H W"],
    ignore: Bool[np.ndarray, "H W"] | None = None,
) -> float:
    """Returns the intersection over union of two masks without the pixels in `ignore`.

    Two empty masks give 0, as in pycocotools.

    Raises:
        ValueError: the masks have different sizes.
    """
    if predicted.shape != ground_truth.shape:
        raise ValueError(f"expected two masks of one size, got {predicted.shape} and {ground_truth.shape}")
    if ignore is not None:
        predicted, ground_truth = predicted & ~ignore, ground_truth & ~ignore
    union = np.count_nonzero(predicted | ground_truth)
    return np.count_nonzero(predicted & ground_truth) / union if union else 0.0
