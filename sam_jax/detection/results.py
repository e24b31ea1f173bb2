"""Turns what the detector found on an image into entries of a COCO result file, on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.detector import Detections
from sam_jax.ops.rle import encode_rle
from sam_jax.ops.transforms import boxes_to_original

MASK_THRESHOLD = 0.5


def to_results(
    detections: Detections, size: tuple[int, int], config: DetectorConfig, *, masks: bool = True
) -> list[dict[str, Any]]:
    """Returns entries with category_id, bbox (x, y, width, height), score and segmentation, best first.

    Args:
        detections: objects of one image, as numpy arrays without the leading axis.
        size: (H, W) of the original image.
        masks: whether entries have their segmentation.
    """
    H, W = size
    found = np.flatnonzero(detections.valid)
    boxes = boxes_to_original(np.asarray(detections.boxes, np.float64)[found], size, config.encoder.image_size)
    boxes = np.clip(boxes, 0, [W, H, W, H])
    entries = []
    for i, (x0, y0, x1, y1) in zip(found, boxes.tolist(), strict=True):
        if x1 <= x0 or y1 <= y0:
            continue
        entry: dict[str, Any] = {
            "category_id": config.category_ids[int(detections.classes[i])],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(detections.scores[i]),
        }
        if masks:
            entry["segmentation"] = encode_rle(paste_mask(np.asarray(detections.masks[i]), (x0, y0, x1, y1), size))
        entries.append(entry)
    return entries


def paste_mask(
    probabilities: Float[np.ndarray, "m m"], box: tuple[float, float, float, float], size: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """Draws a box's mask on the image: bilinear between its cells' centres, and toward zero beyond the outer ones."""
    x0, y0, x1, y1 = box
    H, W = size
    rows, columns = (_pixels(*ends) for ends in ((y0, y1, H), (x0, x1, W)))
    weights = (_weights(*args, len(probabilities)) for args in ((rows, y0, y1), (columns, x0, x1)))
    of_rows, of_columns = weights
    mask = np.zeros(size, bool)
    mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = (
        of_rows @ np.asarray(probabilities, np.float64) @ of_columns.T >= MASK_THRESHOLD
    )
    return mask


def _pixels(low: float, high: float, length: int) -> np.ndarray:
    """Returns the pixels that a mask can reach: at most half a cell outside the box, as it is below 0.5 beyond."""
    return np.arange(max(0, int(np.floor(low)) - 1), min(length, int(np.ceil(high)) + 1))


def _weights(pixels: np.ndarray, low: float, high: float, cells: int) -> np.ndarray:
    position = (pixels + 0.5 - low) / (high - low) * cells - 0.5
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))
