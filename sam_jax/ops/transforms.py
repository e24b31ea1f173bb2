"""Moves images and coordinates between the `original` and the `input` frame, on the host: images have any size.

Reference: section A of the paper; the official `ResizeLongestSide`, which resizes with Pillow.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Real, UInt8
from numpy.typing import ArrayLike
from PIL import Image

from sam_jax.errors import UserError, WrongType


def as_rgb(image: ArrayLike, image_format: str = "RGB") -> UInt8[np.ndarray, "H W 3"]:
    """Converts what a user gives as an image to RGB.

    Args:
        image: (H, W) or (H, W, 1) grey, (H, W, 3), or (H, W, 4) with opacity last, which is laid on white. uint8, or
            uint16, of which the 8, 10, 12, 14 or 16 bits that the values need become 8.
        image_format: "RGB" or "BGR" (OpenCV), the order of colour channels.

    Raises:
        TypeError: not an array of such numbers.
        ValueError: another shape, no pixels, or another `image_format`.
    """
    if image_format not in ("RGB", "BGR"):
        raise UserError(f"expected image_format 'RGB' or 'BGR', got {image_format!r}")
    image = np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16):
        hint = "read files with sam_jax.read_image" if image.dtype.kind in "USO" else "scale to 0-255 and cast to uint8"
        raise WrongType(f"expected an image of dtype uint8 (0-255) or uint16, got {image.dtype}; {hint}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"expected an image of shape (H, W, 3), (H, W) or (H, W, 4), got {image.shape}"
            + ("; channels go last: transpose (1, 2, 0)" if image.ndim == 3 and image.shape[0] in (1, 3, 4) else "")
        )
    if image.size == 0:
        raise UserError(f"expected an image with at least one pixel, got shape {image.shape}")
    if image.dtype == np.uint16:
        # 12-bit cameras and microscopes leave the upper bits of 16 empty: by container, they would come out black.
        top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if image.max() < 2**bits)
        image = np.rint(image * (255.0 / top)).astype(np.uint8)
    colour, opacity = image[..., :3], image[..., 3:]
    if image.shape[-1] == 1:
        return np.repeat(image, 3, -1)
    if image_format == "BGR":
        colour = colour[..., ::-1]
    if opacity.size:
        colour = np.rint(255.0 + (colour - 255.0) * (opacity / 255.0)).astype(np.uint8)
    return np.ascontiguousarray(colour)


def input_size(original_size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns the size (h, w) of an image whose longer side is scaled to `side`, rounded half up and at least 1."""
    scale = side / max(original_size)
    h, w = (max(1, int(length * scale + 0.5)) for length in original_size)
    return h, w


def fit_image(
    image: UInt8[np.ndarray, "H W 3"], side: int
) -> tuple[UInt8[np.ndarray, "{side} {side} 3"], tuple[int, int]]:
    """Resizes an image to the input frame with Pillow's bilinear filter and pads it with zeros, right and below.

    Pillow widens the filter when it shrinks, and rounds to uint8; other filters change what the model predicts.

    Returns:
        the frame, and the size (h, w) of the image in it.
    """
    h, w = input_size(image.shape[:2], side)
    frame = np.zeros((side, side, 3), np.uint8)
    frame[:h, :w] = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
    return frame, (h, w)


def points_to_input(
    points: Real[np.ndarray, "... 2"], original_size: tuple[int, int], side: int
) -> Float[np.ndarray, "... 2"]:
    """Moves points (x, y) in pixels from the original to the input frame, by rounded sizes as the official code."""
    return points * _scale_xy(original_size, side)


def boxes_to_original(
    boxes: Float[np.ndarray, "... 4"], original_size: tuple[int, int], side: int
) -> Float[np.ndarray, "... 4"]:
    """Moves boxes (x0, y0, x1, y1) in pixels from the input to the original frame: the inverse of `points_to_input`."""
    return boxes / np.tile(_scale_xy(original_size, side), 2)


def _scale_xy(original_size: tuple[int, int], side: int) -> Float[np.ndarray, "2"]:
    h, w = input_size(original_size, side)
    return np.array([w / original_size[1], h / original_size[0]])
