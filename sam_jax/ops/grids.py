"""Grids of points and layers of crops for everything mode, as in the official `utils/amg.py`."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float

from sam_jax.errors import UserError


def point_grid(points_per_side: int) -> Float[np.ndarray, "N 2"]:
    """Returns evenly spaced points (x, y) in [0, 1], row by row; N = points_per_side squared."""
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)


def layer_grids(points_per_side: int, crop_layers: int, downscale: int) -> list[Float[np.ndarray, "N 2"]]:
    """Returns a grid for the image and one for each layer of crops.

    The grid of layer n has points_per_side / downscale^n points a side, rounded down.
    """
    return [point_grid(int(points_per_side / downscale**layer)) for layer in range(crop_layers + 1)]


def crop_boxes(
    size: tuple[int, int], crop_layers: int, overlap_ratio: float
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Returns the whole image, then 2^n x 2^n overlapping crops for each layer n = 1 ... crop_layers.

    Args:
        size: (H, W) of the image, pixels.
        overlap_ratio: part of the short side by which neighbours in layer 1 overlap; halved with each further layer.

    Returns:
        (x0, y0, x1, y1) of each crop, those of a layer column by column, and the layer of each.

    Raises:
        ValueError: the image is too small for so many crops.
    """
    H, W = size
    boxes, layers = [(0, 0, W, H)], [0]
    for layer in range(1, crop_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * 2 / count)
        w, h = (math.ceil((overlap * (count - 1) + length) / count) for length in (W, H))
        for column, row in itertools.product(range(count), range(count)):
            x0, y0 = column * (w - overlap), row * (h - overlap)
            x1, y1 = min(x0 + w, W), min(y0 + h, H)
            if x1 <= x0 or y1 <= y0:
                raise UserError(f"an image of {W} x {H} pixels is too small for {crop_layers} layers of crops")
            boxes.append((x0, y0, x1, y1))
            layers.append(layer)
    return boxes, layers
