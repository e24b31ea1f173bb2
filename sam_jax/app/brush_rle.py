"""Label Studio's run lengths of brush masks.

A stream of bits, the highest of each byte first: the number of values (32 bits); the bits of a value less one (5);
four widths, each less one (4 bits each). Then blocks: one bit, set if one value is repeated; which of the widths the
length has (2 bits); the length less one; the value, or as many values as that. The values are the mask as an RGBA
image, row by row, and Label Studio looks at its opacity.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

VALUE_BITS = 8
WIDTHS = (3, 4, 8, 16)  # bits of a length
CHANNELS = 4


def encode_brush(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """A mask as bytes, which JSON has as numbers."""
    flat = mask.reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}", f"{VALUE_BITS - 1:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "1" * VALUE_BITS if flat[start] else "0" * VALUE_BITS
        while length:
            part = min(length, 1 << WIDTHS[-1])
            index = next(i for i, width in enumerate(WIDTHS) if part <= 1 << width)
            bits.append(f"1{index:02b}{part - 1:0{WIDTHS[index]}b}{value}")
            length -= part
    stream = np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")
    return np.packbits(stream).tolist()
