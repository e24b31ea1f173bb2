"""Turns an example into a row of a batch: scaled, cropped, flipped, with masks at the resolution of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sam_jax.config import DataConfig
from sam_jax.data.examples import Example
from sam_jax.errors import BadRecord, UserError
from sam_jax.ops.resample import Patch, resample_runs
from sam_jax.ops.rle import counts_from_rle
from sam_jax.types import Batch


class Row(NamedTuple):
    """One image of a batch. Its masks are still patches: drawn into the batch's own array, only they are touched."""

    image: UInt8[np.ndarray, "S S 3"]
    size: tuple[int, int]
    patches: tuple[Patch, ...]  # at most Q
    boxes: Float[np.ndarray, "q 4"]


def prepare_example(
    example: Example,
    rng: np.random.Generator,
    image_size: int,
    config: DataConfig,
    loss_size: int,
    augment: bool,
) -> Row:
    """Returns an example's scaled, cropped, flipped image, and up to `masks_per_image` of its masks, drawn uniformly.

    The image is resized as at inference: Pillow's bilinear filter, rounded to uint8, padded right and bottom. It is
    decoded at full size: JPEG's own reduction would be faster and give other pixels. Masks are drawn first, and only
    those go from their run lengths to the loss's resolution (`resample_runs`).

    Args:
        rng: draws the scale, the crop, the flip, the colours and the masks.
        image_size: side of the input frame, pixels.
        loss_size: side of the masks, pixels; the input frame scaled.
        augment: False fits the whole image into the frame, unflipped and in its own colours.

    Raises:
        BadRecord: the image or a mask cannot be read, or they have different sizes.
    """
    side, Q = image_size, config.masks_per_image
    H, W = example.size
    if H < 1 or W < 1:
        raise BadRecord("image without pixels", example.where)
    scale = rng.uniform(*config.scale_range) if augment else 1.0
    scale *= side / max(H, W)
    # The window of the original that fills the frame, and its size in the frame.
    window_h, window_w = min(H, side / scale), min(W, side / scale)
    x0, y0 = rng.uniform(0, W - window_w), rng.uniform(0, H - window_h)
    h, w = (max(1, min(side, int(length * scale + 0.5))) for length in (window_h, window_w))
    flip = augment and rng.random() < config.flip_probability

    box = (x0, y0, x0 + window_w, y0 + window_h)
    resized: np.ndarray = np.asarray(example.pil_image().resize((w, h), Image.Resampling.BILINEAR, box=box))
    if augment and config.colour_jitter:
        contrast, brightness = 1 + rng.uniform(-1, 1, 2) * config.colour_jitter
        mean = resized.mean()
        resized = np.clip((resized - mean) * contrast + mean * brightness, 0, 255).astype(np.uint8)
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:h, :w] = resized[:, ::-1] if flip else resized

    to_loss = loss_size / side
    loss_h, loss_w = (max(1, int(length * to_loss + 0.5)) for length in (h, w))
    patches: list[Patch] = []
    boxes: list[np.ndarray] = []
    for index in rng.permutation(len(example.masks)):
        if len(patches) == Q:
            break
        rle = example.masks[index]
        if tuple(rle["size"]) != example.size:
            raise BadRecord("masks of another size", example.where, f"{rle['size']} in an image of {example.size}")
        try:
            counts = counts_from_rle(rle)
        except UserError as error:
            raise BadRecord("run lengths cannot be read", example.where, error) from error
        if not config.min_original_area <= counts[1::2].sum() <= config.max_area_fraction * H * W:
            continue
        found = resample_runs(counts, example.size, (x0, y0), 1 / (scale * to_loss), (loss_h, loss_w))
        if found is None:
            continue
        mask, top, left = found
        area = mask.sum() / to_loss**2
        if area < config.min_area or area > config.max_area_fraction * h * w:
            continue
        rows, columns = mask.shape
        if flip:
            mask, left = mask[:, ::-1], loss_w - left - columns
        patches.append(Patch(mask, top, left))
        edges = np.array([left, top, left + columns, top + rows]) / to_loss
        boxes.append(edges - np.array([0.0, 0.0, 1.0, 1.0]))  # inclusive pixel indices of the input frame
    if config.repeat_masks and patches:
        times = -(-Q // len(patches))
        patches, boxes = (patches * times)[:Q], (boxes * times)[:Q]
    return Row(canvas, (h, w), tuple(patches), np.array(boxes, np.float32).reshape(-1, 4))


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
    return Batch(
        np.stack([row.image for row in rows]), np.array([row.size for row in rows], np.int32), masks, boxes, valid
    )
