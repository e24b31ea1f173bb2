"""Makes RGB of what people give as images, and moves images and coordinates between the `original` and the `input`
frame, on the host: images have any size.

Reference: section A of the paper; the official `ResizeLongestSide`, which resizes with Pillow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Real, UInt8
from numpy.typing import ArrayLike
from PIL import ExifTags, Image

from sam_jax.errors import BadRecord, UserError, WrongType, decoding

BLOCK = 1 << 16  # pixels that are converted at a time: little memory is taken beside the image and the result
BITS, PHOTOMETRIC, PLANAR, WHITE_IS_ZERO = 258, 262, 284, 0  # tags of TIFF, and a value
TRANSPARENCY_SCALES = {"1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}  # by the form of a PNG's pixels
ORIENTATIONS: dict[object, Callable[[np.ndarray], np.ndarray]] = {  # value of the EXIF tag -> how to turn (H, W, C)
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def as_rgb(image: ArrayLike | Image.Image, image_format: str = "RGB") -> UInt8[np.ndarray, "H W 3"]:
    """Converts what a user gives as an image to RGB.

    Args:
        image: (H, W) or (H, W, 1) grey, (H, W, 3), or (H, W, 4) with opacity last, which is laid on white. uint8, or
            uint16, of which the 8, 10, 12, 14 or 16 bits that the values need become 8. Or a Pillow image, see
            `pillow_to_rgb`.
        image_format: "RGB" or "BGR" (OpenCV), the order of colour channels.

    Raises:
        TypeError: not an array of such numbers.
        ValueError: another shape, no pixels, another `image_format`, or a Pillow image that cannot be decoded.
    """
    if image_format not in ("RGB", "BGR"):
        raise UserError(f"expected image_format 'RGB' or 'BGR', got {image_format!r}")
    image = pillow_to_rgb(image) if isinstance(image, Image.Image) else np.asarray(image)
    if image.dtype.kind == "u":
        image = image.astype(image.dtype.newbyteorder("="), copy=False)  # TIFF and PNG readers give either order
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
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.ascontiguousarray(image[..., ::-1] if image_format == "BGR" else image)
    to_8_bits = None
    if image.dtype == np.uint16:
        # 12-bit cameras and microscopes leave the upper bits of 16 empty: by container, they would come out black.
        top = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if image.max() < 2**bits)
        to_8_bits = np.rint(np.arange(top + 1) * (255.0 / top)).astype(np.uint8)
    rgb = np.empty((*image.shape[:2], 3), np.uint8)
    rows = _block_rows(image.shape[1])
    for start in range(0, len(image), rows):
        block = image[start : start + rows]
        block = block if to_8_bits is None else to_8_bits[block]
        colour, opacity = block[..., :3], block[..., 3:]
        if image_format == "BGR":
            colour = colour[..., ::-1]
        if opacity.size:
            colour = np.rint(255.0 + (colour - 255.0) * (opacity / 255.0))
        rgb[start : start + rows] = colour
    return rgb


def pillow_to_rgb(image: Image.Image, *, upright: bool = True) -> UInt8[np.ndarray, "H W 3"]:
    """Converts a Pillow image of any mode to RGB as `as_rgb` does for arrays; transparent parts become white.

    Args:
        upright: turn it as its EXIF orientation says.

    Raises:
        BadRecord: its file is damaged, or its mode has no RGB form.
    """
    name = getattr(image, "filename", "") or f"a Pillow image of mode {image.mode}"
    with decoding(name):
        load_pixels(image)
    orientation = read_orientation(image) if upright else 1
    with decoding(name):
        rgb = _grey_to_rgb(image) if image.mode.startswith(("I", "F")) else _colours_to_rgb(image)
    return np.ascontiguousarray(ORIENTATIONS[orientation](rgb)) if orientation in ORIENTATIONS else rgb


def load_pixels(image: Image.Image) -> None:
    """Decodes a Pillow image whose file was opened and not read yet, around what Pillow gets wrong.

    Raises:
        ValueError, and nearly any other error of Pillow's: see `sam_jax.errors.decoding`.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:
        return
    tags, form, transparent = getattr(image, "tag_v2", {}), tiles[0].args, image.info.get("transparency")
    if tags.get(PLANAR) == 2 and 16 in tags.get(BITS, ()):
        raise ValueError("Pillow mixes up planes of 16 bits; store the channels of each pixel together, or 8 bits")
    if isinstance(form, str) and form in TRANSPARENCY_SCALES:  # Pillow scales the pixels to 8 bits, and not this
        scale = TRANSPARENCY_SCALES[form]
        if isinstance(transparent, int):
            image.info["transparency"] = int(transparent * scale)
        elif isinstance(transparent, tuple):
            image.info["transparency"] = tuple(int(value * scale) for value in transparent)
    name = image.filename  # type: ignore[attr-defined]  # a file with a name is mapped, and sheared if it is turned
    image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.filename = name  # type: ignore[attr-defined]


def read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of a loaded image: 1 to 8, and 1 where its EXIF cannot be read.

    Pillow's own `exif_transpose` also writes the EXIF again, and fails for what cannot be written.
    """
    try:
        with decoding(image, "EXIF"):
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return int(orientation) if orientation in ORIENTATIONS else 1
    except BadRecord:
        return 1


def _block_rows(width: int) -> int:
    return max(1, BLOCK // max(1, width))


def _grey_to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    values = np.asarray(image)
    if image.mode != "F" and values.size and values.min() >= 0 and values.max() <= 0xFFFF:
        values = values.astype(np.uint16)
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 0xFFFF - values  # which Pillow does for 8 bits alone
    rgb = as_rgb(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb[values == transparent] = 255
    return rgb


def _colours_to_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    form = "RGBA" if image.has_transparency_data else "RGB"
    rgb, rows = np.empty((image.height, image.width, 3), np.uint8), _block_rows(image.width)
    for start in range(0, image.height if image.width else 0, rows):
        end = min(image.height, start + rows)
        block = image if rows >= image.height else image.crop((0, start, image.width, end))
        if block.mode != form:
            block = block.convert("LA").convert(form) if block.mode == "La" else block.convert(form)
        rgb[start : start + rows] = as_rgb(np.asarray(block))
    return rgb


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


def points_to_original(
    points: Real[np.ndarray, "... 2"], original_size: tuple[int, int], side: int
) -> Float[np.ndarray, "... 2"]:
    """Moves points (x, y) in pixels from the input to the original frame: the inverse of `points_to_input`."""
    return points / _scale_xy(original_size, side)


def boxes_to_original(
    boxes: Float[np.ndarray, "... 4"], original_size: tuple[int, int], side: int
) -> Float[np.ndarray, "... 4"]:
    """Moves boxes (x0, y0, x1, y1) in pixels from the input to the original frame: the inverse of `points_to_input`."""
    return boxes / np.tile(_scale_xy(original_size, side), 2)


def _scale_xy(original_size: tuple[int, int], side: int) -> Float[np.ndarray, "2"]:
    h, w = input_size(original_size, side)
    return np.array([w / original_size[1], h / original_size[0]])
