"""Places windows of examples in the frame of a training image: scaled, cropped, mirrored, in other colours."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from sam_jax.config import DataConfig
from sam_jax.data.examples import Example
from sam_jax.errors import BadRecord, UserError
from sam_jax.ops.resample import Patch, resample_runs
from sam_jax.ops.rle import counts_from_rle


class Area(NamedTuple):
    """A rectangle of the frame, pixels."""

    top: int
    left: int
    h: int
    w: int


@dataclasses.dataclass(frozen=True)
class View:
    """A window of an example's image, and the area of the frame that it fills."""

    example: Example
    window: tuple[float, float, float, float]  # (x0, y0, x1, y1), pixels of the original
    scale: float  # pixels of the frame per pixel of the original
    area: Area
    flip: bool  # mirrored from left to right

    def image(self, rng: np.random.Generator, colour_jitter: float) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the window's pixels, by Pillow's bilinear filter, as at inference.

        Args:
            colour_jitter: brightness and contrast vary by up to this fraction.

        Raises:
            BadRecord: the image cannot be read, or has another size than its masks.
        """
        size, filter = (self.area.w, self.area.h), Image.Resampling.BILINEAR
        pixels: np.ndarray = np.asarray(self.example.pil_image().resize(size, filter, box=self.window))
        if colour_jitter:
            contrast, brightness = 1 + rng.uniform(-1, 1, 2) * colour_jitter
            mean = pixels.mean()
            pixels = np.clip((pixels - mean) * contrast + mean * brightness, 0, 255).astype(np.uint8)
        return pixels[:, ::-1] if self.flip else pixels

    def patch(self, counts: Int[np.ndarray, " R"], to_mask: float) -> Patch | None:
        """Returns what is seen of a mask, placed in the frame; None if it is nothing.

        Args:
            counts: run lengths of the mask, in the original frame.
            to_mask: pixels of the result per pixel of the frame.
        """
        area = self.area
        top, left = (int(length * to_mask + 0.5) for length in (area.top, area.left))
        h = max(1, int((area.top + area.h) * to_mask + 0.5) - top)
        w = max(1, int((area.left + area.w) * to_mask + 0.5) - left)
        found = resample_runs(counts, self.example.size, self.window[:2], 1 / (self.scale * to_mask), (h, w))
        if found is None:
            return None
        mask, y, x = found
        if self.flip:
            mask, x = mask[:, ::-1], w - x - mask.shape[1]
        return Patch(mask, top + y, left + x)


def draw_view(
    example: Example, rng: np.random.Generator, area: Area, config: DataConfig, *, augment: bool, fill: bool = False
) -> View:
    """Draws the scale, the crop and the flip of an image.

    Args:
        area: what the image is fitted to, before the scale; what is left of it on the right and at the bottom if the
            image is smaller is no part of the view.
        augment: False fits the whole image into the area, unflipped.
        fill: scale the image up as far as is needed to leave nothing of the area.

    Raises:
        BadRecord: the image has no pixels.
    """
    H, W = example.size
    if H < 1 or W < 1:
        raise BadRecord("image without pixels", example.where)
    scale = rng.uniform(*config.scale_range) if augment else 1.0
    scale *= min(area.h / H, area.w / W)
    if fill:
        scale = max(scale, area.h / H, area.w / W)
    window_h, window_w = min(H, area.h / scale), min(W, area.w / scale)
    x, y = rng.uniform(0, W - window_w), rng.uniform(0, H - window_h)
    h, w = max(1, min(area.h, int(window_h * scale + 0.5))), max(1, min(area.w, int(window_w * scale + 0.5)))
    flip = augment and rng.random() < config.flip_probability
    return View(example, (x, y, x + window_w, y + window_h), scale, Area(area.top, area.left, h, w), flip)


def read_counts(example: Example, index: int) -> Int[np.ndarray, " R"]:
    """Returns the run lengths of one of an example's masks.

    Raises:
        BadRecord: the mask cannot be read, or has another size than the image.
    """
    rle = example.masks[index]
    if tuple(rle["size"]) != example.size:
        raise BadRecord("masks of another size", example.where, f"{rle['size']} in an image of {example.size}")
    try:
        return counts_from_rle(rle)
    except UserError as error:
        raise BadRecord("run lengths cannot be read", example.where, error) from error
