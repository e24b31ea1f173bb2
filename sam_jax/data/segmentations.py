"""Reads the masks of COCO-format files: every form of `segmentation`, as pycocotools reads it, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask

from sam_jax.data.examples import check_rle
from sam_jax.data.images import MAX_PIXELS
from sam_jax.errors import BadRecord
from sam_jax.ops.rle import Rle, counts_from_rle, rle_from_counts

FARTHEST = 1e8  # coordinate, pixels; pycocotools reckons with fifths of pixels in 32 bits
LONGEST_OUTLINE = 4_000_000  # of a polygon, pixels: pycocotools draws it step by step


def is_image_size(height: Any, width: Any) -> bool:
    """Says whether these are whole numbers of pixels of an image that is within the limit of those that are read."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (height, width))
    return (
        numbers
        and all(1 <= x <= MAX_PIXELS and x == int(x) for x in (height, width))
        and (height * width <= MAX_PIXELS)
    )


def read_mask(segmentation: Any, size: tuple[int, int], where: str) -> tuple[Rle, int]:
    """Returns a mask in any of COCO's forms as compressed run lengths, checked, and its pixels.

    Args:
        segmentation: polygons; run lengths, compressed or not; or a list of these, of which the union is taken.
        size: (h, w) of the image.

    Raises:
        BadRecord: the mask is none of these, or of another size than the image.
    """
    check_mask(segmentation, size, where)
    parts: list[Any] = [segmentation] if isinstance(segmentation, dict) else segmentation
    if isinstance(parts[0], dict):
        rles = [rle_from_counts(counts_from_rle(part), size) for part in parts]
    else:
        polygons = [[float(number) for number in polygon] for polygon in parts if len(polygon) >= 6]
        rles = pycocotools.mask.frPyObjects(polygons, *size)
    merged = pycocotools.mask.merge(rles) if len(rles) > 1 else rles[0]
    counts = merged["counts"]
    rle = {"size": list(size), "counts": counts if isinstance(counts, str) else counts.decode("ascii")}
    return rle, int(pycocotools.mask.area(rle))  # pyright: ignore[reportArgumentType]


def check_mask(segmentation: Any, size: tuple[int, int], where: str) -> None:
    """Checks that a mask can be read, without drawing it.

    Raises:
        BadRecord: see `read_mask`.
    """
    if not is_image_size(*size):
        raise BadRecord("image without a size", where, f"expected whole numbers of pixels, got {str(size)[:60]} (h, w)")
    if segmentation is None or segmentation == []:
        raise BadRecord("annotation without a segmentation", where)
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        for part in parts:
            check_rle(part, size, where)
        return
    try:
        if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
            raise ValueError("expected polygons or run lengths")
        if len(parts[0]) < 6:
            raise ValueError(f"a first polygon of {len(parts[0])} numbers; pairs and boxes are none")
        for part in parts:
            if len(part) >= 6:
                _check_polygon(np.asarray(part, np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecord("segmentation cannot be read", where, f"{str(segmentation)[:60]}; {error}") from error


def _check_polygon(polygon: np.ndarray) -> None:
    if polygon.ndim != 1 or len(polygon) % 2:
        raise ValueError("expected x and y in turn")
    low, high = polygon.min(), polygon.max()
    if not (low > -FARTHEST and high < FARTHEST):
        raise ValueError("a coordinate that is no number, or far outside of any image")
    if (high - low) * len(polygon) > LONGEST_OUTLINE:  # far above what is common: look closer
        points = polygon.reshape(-1, 2)
        steps = np.abs(points - np.roll(points, 1, 0)).max(-1).sum()
        if steps > LONGEST_OUTLINE:
            raise ValueError(f"an outline of {steps:.0f} pixels")
