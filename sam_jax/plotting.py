"""Draws masks, points and boxes on matplotlib axes, with the names of the official notebooks.

The same as arrays, without matplotlib: `sam_jax.ops.draw`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike, Bool

from sam_jax.ops.draw import COLOURS
from sam_jax.ops.rle import counts_from_rle, mask_from_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_mask(mask: Bool[ArrayLike, "H W"], ax: Axes, colour: int = 0, opacity: float = 0.6) -> None:
    """Draws a mask over the image on the axes.

    Args:
        mask: in the size of the image; a mask (1, H, W) is taken too.
        ax: axes on which the image was drawn, `ax.imshow(image)`.
        colour: number of its colour, of which there are seven; higher numbers begin anew.
        opacity: from 0 to 1.
    """
    pixels = np.asarray(mask).astype(bool)
    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    layer = np.zeros((*pixels.shape, 4))
    layer[pixels] = (*COLOURS[colour % len(COLOURS)] / 255, opacity)
    ax.imshow(layer)


def show_points(coords: ArrayLike, labels: ArrayLike, ax: Axes, marker_size: float = 375) -> None:
    """Draws points as stars, those on the object (label 1) green and those on the background (label 0) red.

    Args:
        coords: points (N, 2) as (x, y), in pixels of the image.
        labels: one for each point.
        ax: axes on which the image was drawn.
        marker_size: area of a star, in square points.
    """
    coords, labels = np.reshape(coords, (-1, 2)), np.reshape(labels, -1)
    for label, colour in ((1, "green"), (0, "red")):
        x, y = coords[labels == label].T
        ax.scatter(x, y, color=colour, marker="*", s=marker_size, edgecolor="white", linewidth=1.25)


def show_box(box: ArrayLike, ax: Axes) -> None:
    """Draws the edges of a box (x0, y0, x1, y1), in pixels of the image, on the axes on which that was drawn."""
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = np.reshape(box, 4)
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, edgecolor="green", facecolor="none", linewidth=2))


def show_anns(anns: Sequence[Mapping[str, Any]], ax: Axes | None = None, opacity: float = 0.35) -> None:
    """Draws all masks of everything mode, each in a colour of its own and the small ones on top of the large ones.

    Args:
        anns: records of `SamAutomaticMaskGenerator.generate`, with masks or with run lengths.
        ax: axes on which the image was drawn; None: those in use.
        opacity: from 0 to 1.
    """
    if not anns:
        return
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.gca()
    rng = np.random.default_rng(0)
    masks = [_pixels(ann["segmentation"]) for ann in sorted(anns, key=lambda ann: ann["area"], reverse=True)]
    layer = np.zeros((*masks[0].shape, 4))
    for mask in masks:
        layer[mask] = (*rng.random(3), opacity)
    ax.imshow(layer)


def _pixels(segmentation: Any) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of a record, in any output mode of everything mode."""
    if isinstance(segmentation, Mapping):
        return mask_from_counts(counts_from_rle(segmentation), tuple(segmentation["size"]))
    return np.asarray(segmentation, bool)
