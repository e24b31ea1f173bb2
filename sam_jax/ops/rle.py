"""Encodes masks as COCO's compressed run lengths, with pycocotools, and decodes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask
from jaxtyping import Bool, Int, UInt8

from sam_jax.errors import UserError

Rle = dict[str, Any]
"""{"size": [H, W], "counts": str}: runs in column-major order, background first. JSON takes it as it is."""


def encode_rle(mask: Bool[np.ndarray, "H W"]) -> Rle:
    """Encodes a mask."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """Decodes a mask, whose `counts` may be str or bytes."""
    return pycocotools.mask.decode(rle).astype(bool)  # pyright: ignore[reportArgumentType]


def rle_area(rle: Rle) -> int:
    """Returns the number of pixels in a mask."""
    return int(pycocotools.mask.area(rle))  # pyright: ignore[reportArgumentType]


def coco_bbox(rle: Rle) -> list[float]:
    """Returns the tight box (x, y, width, height) as COCO defines it: the extent, so one pixel has width 1.

    An empty mask gives zeros.
    """
    return pycocotools.mask.toBbox(rle).tolist()  # pyright: ignore[reportArgumentType]


def sa1b_bbox(rle: Rle) -> list[float]:
    """Returns the tight box (x, y, width, height) as SA-1B defines it: between the outermost pixels.

    Width is x_max - x_min, so one pixel has width 0. An empty mask gives zeros.

    Reference: `mask_to_box` and `box_xyxy_to_xywh` of the official code.
    """
    x, y, width, height = coco_bbox(rle)
    return [x, y, max(width - 1, 0.0), max(height - 1, 0.0)]


def rle_iou(first: Rle, second: Rle) -> float:
    """Returns the intersection over union of two masks of one size.

    Two empty masks give 0, here and wherever the package compares masks, as in pycocotools: nothing was found.
    """
    return float(pycocotools.mask.iou([first], [second], [0])[0, 0])  # pyright: ignore[reportArgumentType]


def counts_from_bits(
    bits: UInt8[np.ndarray, "w n"], size: tuple[int, int], offset: tuple[int, int] = (0, 0)
) -> Int[np.ndarray, " R"]:
    """Returns the run lengths of a mask whose bits are packed, of a crop of an image or of all of it.

    Args:
        bits: column by column, the first row in the highest bit (`np.packbits` of the transposed mask). After the last
            row at least one bit is zero, so that no run continues in the next column.
        size: (H, W) of the image.
        offset: (x, y) of the crop in the image.

    Returns:
        lengths of runs in column-major order, background first; a last run of no pixels is left out.
    """
    (H, W), (x, y), rows = size, offset, 8 * bits.shape[1]
    stream = bits.reshape(-1)
    before = stream >> 1
    before[1:] |= stream[:-1] << 7
    changes = stream ^ before
    (where,) = np.nonzero(changes)  # most bytes lie inside or outside: the few others are looked at bit by bit
    byte, bit = np.nonzero(np.unpackbits(changes[where, None], axis=1))
    column, row = np.divmod(where[byte] * 8 + bit, rows)
    position = (x + column) * H + y + row
    starts, ends = position[0::2], position[1::2]
    # A run down to the image's last row touches one that starts the next column: they are one.
    parted = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, parted)[: len(starts)]], ends[np.append(parted, True)[: len(ends)]]
    borders = np.stack([starts, ends], -1).reshape(-1)
    counts = np.diff(borders, prepend=0, append=H * W)
    return counts if counts[-1] else counts[:-1]


def counts_from_mask(
    mask: Bool[np.ndarray, "h w"], size: tuple[int, int] | None = None, offset: tuple[int, int] = (0, 0)
) -> Int[np.ndarray, " R"]:
    """Returns the run lengths of a mask, as `counts_from_bits` does.

    Args:
        mask: of a crop of an image or of all of it.
        size: (H, W) of the image; None: that of the mask.
        offset: (x, y) of the crop in the image.
    """
    bits = np.packbits(np.pad(mask.T, ((0, 0), (0, 1))), axis=1)
    return counts_from_bits(bits, mask.shape if size is None else size, offset)


def mask_from_counts(counts: Int[np.ndarray, " R"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of run lengths: the inverse of `counts_from_mask`."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T


def rle_from_counts(counts: Int[np.ndarray, " R"], size: tuple[int, int]) -> Rle:
    """Returns run lengths in COCO's compressed form."""
    rle = pycocotools.mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def counts_from_rle(rle: Any) -> Int[np.ndarray, " R"]:
    """Returns the run lengths of a mask in COCO's compressed form, or in its form as a list of numbers, after checks.

    Each byte holds five bits of a number, the lowest first, and a sixth that says whether more follow. From the fourth
    on, a number is the difference to the one two places before.

    Args:
        rle: as read from a file, so it may be anything.

    Raises:
        ValueError: not run lengths, or they do not add up to the size.
    """
    try:
        (H, W), text = rle["size"], rle["counts"]
        if not all(isinstance(x, int | np.integer) and 0 <= x < 2**31 for x in (H, W)):
            raise ValueError("the size is not two whole numbers (h, w)")
        if isinstance(text, list):
            counts = np.array(text, np.int64)
        else:
            data = (
                np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
            )
            last = data & 0x20 == 0
            starts = np.flatnonzero(np.append(True, last[:-1]))
            place = np.arange(len(data)) - np.repeat(starts, np.diff(starts, append=len(data)))
            if not len(data) or not last[-1] or data.min() < 0 or data.max() > 63 or place.max() > 8:
                raise ValueError("cut off or not of the alphabet")
            counts = np.add.reduceat((data & 0x1F) << (5 * place), starts)
            counts -= np.where(data[last] & 0x10, 1 << (5 * (place[last] + 1)), 0)
            counts[1::2] = counts[1::2].cumsum()
            counts[2::2] = counts[2::2].cumsum()
    except (TypeError, KeyError, ValueError, OverflowError, UnicodeEncodeError) as error:
        raise UserError(f"expected COCO run lengths, got {str(rle)[:80]} ({error})") from error
    if counts.ndim != 1 or (len(counts) and counts.min() < 0) or counts.max(initial=0) > H * W or counts.sum() != H * W:
        raise UserError(f"expected runs of {H} x {W} = {H * W} pixels, they add up to {int(counts.sum())}")
    return counts
