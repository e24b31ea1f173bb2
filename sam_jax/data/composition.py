"""Composes training images of several examples: four side by side, and an object of one pasted on another."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.config import DataConfig
from sam_jax.data.examples import Example, Source
from sam_jax.data.views import Area, View, draw_view, read_counts
from sam_jax.ops.resample import Patch, resample_runs, trim_mask

CENTRE = (0.3, 0.7)  # where the four parts of a mosaic meet, fraction of the frame's side
PASTED_AREA = (0.01, 0.4)  # of objects that are pasted, fraction of their image
PASTED_SIDE = 2 / 3  # largest side of a pasted object, fraction of the image's


class Pasted(NamedTuple):
    """What was pasted on an image."""

    patch: Patch  # the object, at the resolution of the loss
    covered: Bool[np.ndarray, "L L"]  # the same over the whole frame


def draw_example(others: Source, rng: np.random.Generator) -> Example:
    """Draws an example uniformly.

    Raises:
        BadRecord: it cannot be used.
    """
    return others[int(rng.integers(len(others)))]


def draw_mosaic(
    example: Example, others: Source, rng: np.random.Generator, side: int, loss_size: int, config: DataConfig
) -> list[View]:
    """Cuts the frame in 2 x 2 parts around a random centre, and fills each with a view of one image.

    The centre lies between pixels of the loss, so that masks end where their images do.

    Args:
        example: the image of the first part; those of the three others are drawn.
        side: of the frame, pixels.

    Raises:
        BadRecord: one of those that are drawn cannot be used.

    Reference: Bochkovskiy et al. 2020 (YOLOv4), section 3.3.
    """
    low, high = (max(1, min(loss_size - 1, round(part * loss_size))) for part in CENTRE)
    y, x = (int(cell * side / loss_size + 0.5) for cell in rng.integers(low, high + 1, 2))
    areas = (Area(0, 0, y, x), Area(0, x, y, side - x), Area(y, 0, side - y, x), Area(y, x, side - y, side - x))
    examples = (example, *(draw_example(others, rng) for _ in areas[1:]))
    return [
        draw_view(part, rng, area, config, augment=True, fill=True) for part, area in zip(examples, areas, strict=True)
    ]


def paste_object(
    canvas: UInt8[np.ndarray, "S S 3"],
    size: tuple[int, int],
    other: Example,
    rng: np.random.Generator,
    loss_size: int,
    config: DataConfig,
) -> Pasted | None:
    """Cuts one object out of another image, scales and flips it, and pastes it somewhere on this one.

    Args:
        canvas: the frame, which is changed.
        size: (h, w) of the part of it that is image.

    Raises:
        BadRecord: the other image or its mask cannot be read.

    Returns:
        None if that image has no object of a fit size.

    Reference: Ghiasi et al. 2021 (Simple Copy-Paste), section 3.
    """
    (H, W), side = other.size, len(canvas)
    for index in rng.permutation(len(other.masks)):
        counts = read_counts(other, index)
        if PASTED_AREA[0] <= counts[1::2].sum() / max(1, H * W) <= PASTED_AREA[1]:
            break
    else:
        return None
    whole = resample_runs(counts, other.size, (0, 0), 1.0, other.size)
    assert whole is not None, "it has pixels"
    (rows, columns), (x0, y0) = whole.mask.shape, (whole.left, whole.top)
    scale = rng.uniform(*config.scale_range) * side / max(H, W)
    scale = min(scale, PASTED_SIDE * size[0] / rows, PASTED_SIDE * size[1] / columns)
    h, w = max(1, int(rows * scale)), max(1, int(columns * scale))
    area = Area(int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1)), h, w)
    view = View(other, (x0, y0, x0 + columns, y0 + rows), scale, area, rng.random() < config.flip_probability)
    found = view.patch(counts, 1.0)
    if found is None:
        return None
    mask, y, x = found
    here = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
    cover = np.zeros((side, side), np.float32)
    cover[here] = mask
    covered = cv2.resize(cover, (loss_size, loss_size), interpolation=cv2.INTER_AREA) > 0.5
    patch = trim_mask(covered, 0, 0)
    if patch is None or patch.mask.sum() * (side / loss_size) ** 2 < config.min_area:
        return None
    pixels = np.zeros_like(canvas)
    pixels[area.top : area.top + h, area.left : area.left + w] = view.image(rng, config.colour_jitter)
    canvas[here][mask] = pixels[here][mask]
    return Pasted(patch, covered)


def what_is_left(patch: Patch, covered: Bool[np.ndarray, "L L"]) -> Patch | None:
    """Returns the visible part of a mask on which something was pasted; None if it is less than half."""
    mask, top, left = patch
    visible = mask & ~covered[top : top + mask.shape[0], left : left + mask.shape[1]]
    return trim_mask(visible, top, left) if 2 * visible.sum() >= mask.sum() else None
