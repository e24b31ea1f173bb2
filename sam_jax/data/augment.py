"""One example -> one row of a batch: scaled, cropped, flipped, with masks at the resolution of the loss."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from sam_jax.config import DataConfig, SamConfig
from sam_jax.data.bad_records import BadRecord
from sam_jax.data.examples import Example
from sam_jax.ops.resample import resample_runs
from sam_jax.ops.rle import counts_from_rle

Row = tuple[
    UInt8[np.ndarray, "S S 3"],
    Int[np.ndarray, "2"],
    Bool[np.ndarray, "Q L L"],
    Float[np.ndarray, "Q 4"],
    Bool[np.ndarray, " Q"],
]
"""The fields of `sam_jax.types.Batch` without the axis B."""


def prepare_example(
    example: Example,
    rng: np.random.Generator,
    model: SamConfig,
    config: DataConfig,
    loss_size: int,
    augment: bool,
) -> Row:
    """Scaled, cropped, flipped picture, and up to `masks_per_image` of its masks, drawn uniformly.

    The picture is resized as at inference: Pillow's bilinear filter, rounded to uint8, padded right and bottom. It is
    decoded at full size: JPEG's own reduction would be faster and give other pixels. Masks are drawn first, and only
    those go from their run lengths to the loss's resolution (`resample_runs`).

    Raises:
        BadRecord: the picture or a mask cannot be read, or they have different sizes.
    """
    side, Q = model.image_size, config.masks_per_image
    H, W = example.size
    if H < 1 or W < 1:
        raise BadRecord("picture without pixels", example.where)
    scale = rng.uniform(*config.scale_range) if augment else 1.0
    scale *= side / max(H, W)
    # The window of the original that fills the frame, and its size in the frame.
    window_h, window_w = min(H, side / scale), min(W, side / scale)
    x0, y0 = rng.uniform(0, W - window_w), rng.uniform(0, H - window_h)
    h, w = (max(1, min(side, int(length * scale + 0.5))) for length in (window_h, window_w))
    flip = augment and rng.random() < config.flip_probability

    box = (x0, y0, x0 + window_w, y0 + window_h)
    resized = np.asarray(example.picture().resize((w, h), Image.Resampling.BILINEAR, box=box))
    if augment and config.colour_jitter:
        contrast, brightness = 1 + rng.uniform(-1, 1, 2) * config.colour_jitter
        mean = resized.mean()
        resized = np.clip((resized - mean) * contrast + mean * brightness, 0, 255).astype(np.uint8)
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[:h, :w] = resized[:, ::-1] if flip else resized

    masks = np.zeros((Q, loss_size, loss_size), bool)
    boxes = np.zeros((Q, 4), np.float32)
    valid = np.zeros(Q, bool)
    to_loss = loss_size / side
    loss_h, loss_w = (max(1, int(length * to_loss + 0.5)) for length in (h, w))
    slot = 0
    for index in rng.permutation(len(example.masks)):
        if slot == Q:
            break
        rle = example.masks[index]
        if tuple(rle["size"]) != example.size:
            raise BadRecord("masks of another size", example.where, f"{rle['size']} in a picture of {example.size}")
        try:
            counts = counts_from_rle(rle)
        except ValueError as error:
            raise BadRecord("run lengths cannot be read", example.where, error) from error
        if counts[1::2].sum() > config.max_area_fraction * H * W:
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
        masks[slot, top : top + rows, left : left + columns] = mask
        edges = np.array([left, top, left + columns, top + rows]) / to_loss
        boxes[slot] = edges - np.array([0.0, 0.0, 1.0, 1.0])  # inclusive pixel indices of the input frame
        valid[slot] = True
        slot += 1
    return canvas, np.array([h, w], np.int32), masks, boxes, valid


def empty_row(model: SamConfig, config: DataConfig, loss_size: int) -> Row:
    """In place of an example that can't be used: a black picture without masks."""
    side, Q = model.image_size, config.masks_per_image
    return (
        np.zeros((side, side, 3), np.uint8),
        np.array([side, side], np.int32),
        np.zeros((Q, loss_size, loss_size), bool),
        np.zeros((Q, 4), np.float32),
        np.zeros(Q, bool),
    )
