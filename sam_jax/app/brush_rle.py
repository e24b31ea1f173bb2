"""Label Studio's run-length encoding of brush masks.

The encoding is a stream of bits, the highest bit of each byte first. Its header is the number of values (32 bits), the
bits of a value minus one (5 bits), and four widths, each minus one (4 bits each). Blocks follow: one bit, set if a
single value is repeated; the index of the width in which the length is written (2 bits); the length minus one; and the
value, or that many values. The values are those of the mask as an RGBA image, row by row, of which Label Studio uses
the opacity.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

VALUE_BITS = 8
WIDTHS = (3, 4, 8, 16)  # bits in which a length is written
CHANNELS = 4


def encode_brush(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """Returns the encoded bytes of a mask, as the list of numbers that JSON holds."""
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
