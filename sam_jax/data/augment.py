"""Turns examples into rows of a batch: scaled, cropped, flipped, composed, with masks at the loss's resolution."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sam_jax.config import DataConfig
from sam_jax.data.composition import Pasted, draw_example, draw_mosaic, paste_object, what_is_left
from sam_jax.data.examples import Example, Source
from sam_jax.data.mask_filters import NOT_SEEN, TOO_LARGE, TOO_SMALL, TOO_SMALL_BEFORE
from sam_jax.data.views import Area, View, draw_view, read_counts
from sam_jax.errors import BadRecord
from sam_jax.ops.resample import Patch
from sam_jax.types import Batch


class Row(NamedTuple):
    """One image of a batch. Its masks are still patches: drawn into the batch's own array, only they are touched."""

    image: UInt8[np.ndarray, "S S 3"] | None  # None: `maps` are given
    size: tuple[int, int]
    patches: tuple[Patch, ...]  # at most Q
    boxes: Float[np.ndarray, "q 4"]
    maps: dict[str, Float[np.ndarray, "h w C"]] | None = None  # of the image encoder, computed before
    dropped: tuple[str, ...] = ()  # why each mask that was drawn, and is not among `patches`, is left out
    unread: tuple[BadRecord, ...] = ()  # what is wrong with the example's masks that cannot be read

    @property
    def masks(self) -> int:
        """Returns the number of masks, repeated ones once."""
        return len({id(patch) for patch in self.patches})


def prepare_example(
    example: Example,
    rng: np.random.Generator,
    image_size: int,
    config: DataConfig,
    loss_size: int,
    augment: bool,
    others: Source = (),
) -> Row:
    """Returns an example's scaled, cropped, flipped image, and up to `masks_per_image` of its masks, drawn uniformly.

    The image is resized as at inference: Pillow's bilinear filter, rounded to uint8, padded right and bottom. It is
    decoded at full size: JPEG's own reduction would be faster and give other pixels. Masks are drawn first, and only
    those go from their run lengths to the loss's resolution (`resample_runs`).

    With the probabilities of the config the image is one part of a mosaic, and an object of another image is pasted on
    it. If another image cannot be used, the example comes alone; what is wrong there counts when it is drawn itself.

    Args:
        rng: draws the scale, the crop, the flip, the colours, the masks, and what comes from other examples.
        image_size: side of the input frame, pixels.
        loss_size: side of the masks, pixels; the input frame scaled.
        augment: False fits the whole image into the frame, unflipped and in its own colours.
        others: the examples that mosaics and pasted objects are drawn from; none: there are neither.

    Raises:
        BadRecord: the image or a mask cannot be read, or they have different sizes.
    """
    frame = Area(0, 0, image_size, image_size)

    def compose(mosaic: bool, paste: bool) -> Row:
        views = (
            draw_mosaic(example, others, rng, image_size, loss_size, config)
            if mosaic
            else [draw_view(example, rng, frame, config, augment=augment)]
        )
        canvas = np.zeros((image_size, image_size, 3), np.uint8)
        for view in views:
            (top, left, h, w), jitter = view.area, config.colour_jitter if augment else 0.0
            canvas[top : top + h, left : left + w] = view.image(rng, jitter)
        size = max(view.area.top + view.area.h for view in views), max(view.area.left + view.area.w for view in views)
        pasted = paste_object(canvas, size, draw_example(others, rng), rng, loss_size, config) if paste else None
        return _with_masks(canvas, size, views, pasted, rng, config, loss_size)

    mosaic, paste = (
        bool(augment and len(others) and probability) and rng.random() < probability
        for probability in (config.mosaic_probability, config.copy_paste_probability)
    )
    if mosaic or paste:
        with contextlib.suppress(BadRecord):  # of another example, or of this one: alone it raises it again
            return compose(mosaic, paste)._replace(unread=example.left_out)
    return compose(False, False)._replace(unread=example.left_out)


def _with_masks(
    canvas: UInt8[np.ndarray, "S S 3"],
    size: tuple[int, int],
    views: Sequence[View],
    pasted: Pasted | None,
    rng: np.random.Generator,
    config: DataConfig,
    loss_size: int,
) -> Row:
    """Draws the masks of a finished image: what was pasted on it, and of all others uniformly."""
    Q, to_loss = config.masks_per_image, loss_size / len(canvas)
    patches, dropped = [pasted.patch] if pasted is not None else [], []
    candidates = [(view, index) for view in views for index in range(len(view.example.masks))]
    for chosen in rng.permutation(len(candidates)):
        if len(patches) == Q:
            break
        view, index = candidates[chosen]
        counts, (H, W) = read_counts(view.example, index), view.example.size
        if (original_area := counts[1::2].sum()) < config.min_original_area:
            dropped.append(TOO_SMALL_BEFORE)
            continue
        if original_area > config.max_area_fraction * H * W:
            dropped.append(TOO_LARGE)
            continue
        patch = view.patch(counts, to_loss)
        if patch is not None and patch.mask.sum() / to_loss**2 > config.max_area_fraction * view.area.h * view.area.w:
            dropped.append(TOO_LARGE)
            continue
        if patch is not None and pasted is not None:
            patch = what_is_left(patch, pasted.covered)
        if patch is None:
            dropped.append(NOT_SEEN)
        elif patch.mask.sum() / to_loss**2 < config.min_area:
            dropped.append(TOO_SMALL)
        else:
            patches.append(patch)
    if config.repeat_masks and patches:
        patches = (patches * -(-Q // len(patches)))[:Q]
    boxes = [(left, top, left + mask.shape[1], top + mask.shape[0]) for mask, top, left in patches]
    # Inclusive pixel indices of the input frame.
    edges = np.array(boxes, np.float64).reshape(-1, 4) / to_loss - np.array([0.0, 0.0, 1.0, 1.0])
    return Row(canvas, size, tuple(patches), edges.astype(np.float32), dropped=tuple(dropped))


def empty_row(image_size: int) -> Row:
    """Returns what stands in place of an example that can't be used: a black image without masks."""
    size = (image_size, image_size)
    return Row(np.zeros((*size, 3), np.uint8), size, (), np.zeros((0, 4), np.float32))


def stack_rows(rows: Sequence[Row], masks_per_image: int, loss_size: int) -> Batch:
    """Stacks rows to a batch; slots without a mask are zeros and not valid."""
    B, Q = len(rows), masks_per_image
    masks = np.zeros((B, Q, loss_size, loss_size), bool)
    boxes = np.zeros((B, Q, 4), np.float32)
    valid = np.zeros((B, Q), bool)
    for b, row in enumerate(rows):
        for q, (mask, top, left) in enumerate(row.patches):
            h, w = mask.shape
            masks[b, q, top : top + h, left : left + w] = mask
        boxes[b, : len(row.boxes)] = row.boxes
        valid[b, : len(row.patches)] = True
    images = [row.image for row in rows if row.image is not None]
    maps = [row.maps for row in rows if row.maps is not None]
    return Batch(
        np.stack(images) if images else None,
        np.array([row.size for row in rows], np.int32),
        masks,
        boxes,
        valid,
        {name: np.stack([own[name] for own in maps]) for name in maps[0]} if maps else None,
    )
