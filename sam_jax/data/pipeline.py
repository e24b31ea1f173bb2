"""Examples -> batches. Each batch is a pure function of the seed and the step, so resuming needs no state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sam_jax.config import DataConfig, SamConfig
from sam_jax.data.examples import Example
from sam_jax.ops.rle import decode_rle
from sam_jax.types import Batch


def make_batch(
    examples: Sequence[Example],
    step: int,
    *,
    model: SamConfig,
    config: DataConfig,
    loss_size: int,
    seed: int,
    augment: bool = True,
) -> Batch:
    """The batch of one step: pictures in the order of a permutation per epoch, masks drawn at random.

    Args:
        step: counts batches from 0.
        loss_size: side of the masks, pixels; the input frame scaled.
        augment: False gives the same fitted, unflipped pictures every time.
    """
    B = config.batch_size
    rng = np.random.default_rng((seed, step))
    rows = [_picture_of(examples, step * B + i, seed) for i in range(B)]
    parts = [prepare_example(example, rng, model, config, loss_size, augment) for example in rows]
    return Batch(*(np.stack(column) for column in zip(*parts, strict=True)))


def _picture_of(examples: Sequence[Example], position: int, seed: int) -> Example:
    epoch, offset = divmod(position, len(examples))
    return examples[np.random.default_rng((seed, epoch, 1)).permutation(len(examples))[offset]]


def prepare_example(
    example: Example,
    rng: np.random.Generator,
    model: SamConfig,
    config: DataConfig,
    loss_size: int,
    augment: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One row of a batch: scaled, cropped, flipped picture, and up to `masks_per_image` of its masks.

    The picture is resized as at inference: Pillow's bilinear filter, rounded to uint8, padded right and bottom.
    """
    side, Q = model.image_size, config.masks_per_image
    image = example.image()
    H, W = example.size
    scale = rng.uniform(*config.scale_range) if augment else 1.0
    scale *= side / max(H, W)
    # The window of the original that fills the frame, and its size in the frame.
    window_h, window_w = min(H, side / scale), min(W, side / scale)
    x0, y0 = rng.uniform(0, W - window_w), rng.uniform(0, H - window_h)
    h, w = (min(side, int(length * scale + 0.5)) for length in (window_h, window_w))
    flip = augment and rng.random() < config.flip_probability

    box = (x0, y0, x0 + window_w, y0 + window_h)
    resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR, box=box))
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
    # One affine map from the loss frame into the original, for picture and masks alike; pixel centres lie at +0.5.
    step = 1 / (scale * to_loss)
    shift = 0.5 * step - 0.5
    inverse = np.array([[step, 0, x0 + shift], [0, step, y0 + shift]])
    loss_h, loss_w = (max(1, int(length * to_loss + 0.5)) for length in (h, w))
    blur = max(1, round(step))
    slot = 0
    for index in rng.permutation(len(example.masks)):
        full: np.ndarray = decode_rle(example.masks[index]).astype(np.float32)
        if blur > 1:  # area average first, so that thin parts survive the subsampling
            full = cv2.blur(full, (blur, blur))
        warped = cv2.warpAffine(
            full,
            inverse,
            (loss_w, loss_h),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        mask = warped > 0.5
        area = mask.sum() / to_loss**2
        if area < config.min_area or area > config.max_area_fraction * h * w:
            continue
        mask = mask[:, ::-1] if flip else mask
        masks[slot, :loss_h, :loss_w] = mask
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        edges = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) / to_loss
        boxes[slot] = edges - np.array([0.0, 0.0, 1.0, 1.0])  # inclusive pixel indices of the input frame
        valid[slot] = True
        slot += 1
        if slot == Q:
            break
    return canvas, np.array([h, w], np.int32), masks, boxes, valid


class BatchLoader:
    """Batches from `first_step` on, prepared ahead by threads. A context manager: leaving it stops the threads."""

    def __init__(self, examples: Sequence[Example], first_step: int, *, workers: int, **make_batch_args: Any) -> None:
        if not examples:
            raise ValueError("expected at least one picture with masks to train on, got none")
        self._examples, self._args = examples, make_batch_args
        self._pool = ThreadPoolExecutor(max(workers, 1))
        self._next_step = first_step
        self._ready: deque[Future[Batch]] = deque()
        for _ in range(2 * max(workers, 1)):
            self._submit()

    def _submit(self) -> None:
        self._ready.append(self._pool.submit(make_batch, self._examples, self._next_step, **self._args))
        self._next_step += 1

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._ready.popleft().result()
        self._submit()
        return batch

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
