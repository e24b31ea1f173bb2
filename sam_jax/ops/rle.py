"""Masks as COCO's compressed run lengths, through pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask
from jaxtyping import Bool

Rle = dict[str, Any]
"""{"size": [H, W], "counts": str}: runs in column-major order, background first. JSON takes it as it is."""


def encode_rle(mask: Bool[np.ndarray, "H W"]) -> Rle:
    rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """Takes `counts` as str or bytes."""
    return pycocotools.mask.decode(rle).astype(bool)  # pyright: ignore[reportArgumentType]


def rle_area(rle: Rle) -> int:
    """Pixels in the mask."""
    return int(pycocotools.mask.area(rle))  # pyright: ignore[reportArgumentType]


def rle_box(rle: Rle) -> list[float]:
    """COCO's tight box (x, y, width, height); one pixel has width 1, an empty mask is all zeros."""
    return pycocotools.mask.toBbox(rle).tolist()  # pyright: ignore[reportArgumentType]
