"""Filters the masks of everything mode on the device: from low_res logits to the few that are kept, as packed bits.

Reference: the official `SamAutomaticMaskGenerator._process_batch`. There every mask is resized to the image and then
most are dropped. Here the masks that pass the IoU filter are resized a few at a time, in a loop that ends with the last
of them, and are returned as bits: the memory on the device does not grow with the number of points.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from sam_jax.config import SamConfig
from sam_jax.ops.masks import frame_matrices
from sam_jax.types import AnyArray

COLUMN_BLOCKS = 16
EDGE = 20.0  # pixels; a box this near to the side of a crop is taken to be cut off


class Frame(NamedTuple):
    """A crop that masks are resized to, and the thresholds for them. A leading axis holds several."""

    rows: Float[AnyArray, "m 8 b r"]  # from low_res to m blocks of 8 b rows, each from r neighbours in low_res
    row_starts: Int[AnyArray, " m"]  # the first of them
    columns: Float[AnyArray, "n w s"]  # likewise for n blocks of columns
    column_starts: Int[AnyArray, " n"]
    size: Int[AnyArray, "2"]  # (h, w) of the crop
    crop_box: Float[AnyArray, "4"]  # in the image
    image_box: Float[AnyArray, "4"]
    thresholds: Float[AnyArray, "4"]  # predicted IoU above, stability from, stability offset, area below (pixels)


class Dropped(NamedTuple):
    """The number of masks that each filter dropped, by image; each counts for the first filter that drops it."""

    predicted_iou: Int[AnyArray, " B"]
    stability: Int[AnyArray, " B"]
    cut_off: Int[AnyArray, " B"]  # by a side of the crop that is not one of the image
    area: Int[AnyArray, " B"]


class Selection(NamedTuple):
    """The `kept` masks that passed the filters, in the order of the prompts; the rest is padding."""

    kept: Int[Array, ""]
    dropped: Dropped
    source: Int[Array, " N"]  # into the masks flattened: image, prompt, output
    iou_predictions: Float[Array, " N"]
    stability_scores: Float[Array, " N"]
    boxes: Int[Array, "N 4"]  # outermost pixels (x0, y0, x1, y1) in the crop, inclusive
    bits: UInt8[Array, "N Wp n"]  # as `sam_jax.ops.rle.counts_from_bits` takes them


def padded_length(length: int) -> int:
    """Rounds a length up to the next of 8 steps per octave, always above it, so that near sizes share a program."""
    step = _padding_step(length)
    return -(-(length + 1) // step) * step


def _padding_step(length: int) -> int:
    return max(32, 2 ** (math.ceil(math.log2(length + 1)) - 4))


def make_frames(
    sizes: Sequence[tuple[int, int]],
    crop_boxes: Sequence[tuple[int, int, int, int]],
    image_sizes: Sequence[tuple[int, int]],
    thresholds: Sequence[tuple[float, float, float, float]],
    config: SamConfig,
) -> list[Frame]:
    """Returns the frames of crops that are computed together, whose arrays have the same shapes.

    Args:
        sizes: (h, w) of each crop.
        crop_boxes: (x0, y0, x1, y1) of each crop in its image.
        image_sizes: (H, W) of each image.
        thresholds: as in `Frame`.
    """
    Hp, Wp = (padded_length(max(lengths)) for lengths in zip(*sizes, strict=True))
    matrices = [frame_matrices(size, config) for size in sizes]
    rows, row_starts = _cut_to_blocks([m for m, _ in matrices], Hp, Hp // _padding_step(Hp - 1))
    # Row 8 j + i of a block comes to (i, j): then each bit of the bytes is a block of rows.
    rows = rows.reshape(*rows.shape[:2], -1, 8, rows.shape[-1]).swapaxes(2, 3)
    columns, column_starts = _cut_to_blocks([m for _, m in matrices], Wp, COLUMN_BLOCKS)
    frames = []
    for i, (H, W) in enumerate(image_sizes):
        size = np.array(sizes[i], np.int32)
        numbers = (np.array(x, np.float32) for x in (crop_boxes[i], (0, 0, W, H), thresholds[i]))
        frames.append(Frame(rows[i], row_starts[i], columns[i], column_starts[i], size, *numbers))
    return frames


def _cut_to_blocks(
    matrices: Sequence[Float[np.ndarray, "_ S"]], length: int, count: int
) -> tuple[Float[np.ndarray, "B n w s"], Int[np.ndarray, "B n"]]:
    """Pads matrices to a length and cuts them into blocks of rows, without the columns in which a block is zero.

    They are nearly all zeros, along a diagonal: blocks are an eighth of the arithmetic.

    Returns:
        The blocks of each matrix, and the first column of each block.
    """
    S = matrices[0].shape[1]
    padded = np.stack([np.pad(m, ((0, length - len(m)), (0, 0))) for m in matrices])
    blocks = padded.reshape(len(matrices), count, -1, S)
    used = np.any(blocks, axis=2)
    starts, ends = used.argmax(-1), np.where(used.any(-1), S - used[..., ::-1].argmax(-1), 0)
    width = min(S, -(-int((ends - starts).max()) // 16) * 16)
    starts = np.minimum(starts, S - width)
    return np.take_along_axis(blocks, (starts[..., None] + np.arange(width))[:, :, None], 3), starts.astype(np.int32)


def select_masks(
    logits: Float[Array, "B Q M S S"],
    iou_predictions: Float[Array, "B Q M"],
    valid: Bool[Array, "B Q"],
    frames: Frame,
    at_once: int,
) -> Selection:
    """Filters masks by predicted IoU, stability, the sides of the crop and area.

    The stability score is the IoU of the masks at the two thresholds +offset and -offset, at the size of the crop, and
    0 where both are empty.

    Args:
        valid: False for prompts that are padding.
        frames: one of each image, along a leading axis.
        at_once: how many masks are resized to the crop together. One at a time is only resized where it can be above
            the lower threshold, which suits processors; together they are resized as a whole.
    """
    B, Q, M, S, _ = logits.shape
    N = B * Q * M
    flat_logits, flat_iou = logits.reshape(N, S, S), iou_predictions.reshape(N)
    above = iou_predictions > frames.thresholds[:, 0, None, None]
    passing = above & valid[:, :, None]
    too_low = (~above & valid[:, :, None]).sum((1, 2))
    # The masks that pass come first, in their order; a last group may reach past the end.
    order = jnp.pad(jnp.argsort(~passing.reshape(N), stable=True), (0, at_once))
    total = passing.sum()
    Wp, Hp = math.prod(frames.columns.shape[1:3]), math.prod(frames.rows.shape[1:4])

    def measure(index: Array) -> tuple[Array, Array, Array, Array]:
        """Returns which of three filters drop a mask (stability, side, area), its stability, its box and its bits."""
        frame = jax.tree.map(lambda x: x[index // (Q * M)], frames)
        _, stable, _, max_area = frame.thresholds
        certain, possible, bits = (resize_whole if at_once > 1 else resize_tiles)(flat_logits[index], frame)
        stability = certain / jnp.maximum(possible, 1)
        in_column = bits.any(1)
        in_row = jnp.unpackbits(jax.lax.reduce_or(bits, (0,)))
        area = jax.lax.population_count(bits).astype(jnp.int32).sum()
        last_x, last_y = Wp - 1 - in_column[::-1].argmax(), Hp - 1 - in_row[::-1].argmax()
        box = jnp.stack([in_column.argmax(), in_row.argmax(), last_x, last_y]) * (area > 0)

        in_image = box + jnp.tile(frame.crop_box[:2], 2)
        at_crop, at_image = (jnp.abs(in_image - side) <= EDGE for side in (frame.crop_box, frame.image_box))
        cut_off = (at_crop & ~at_image).any()
        fails = jnp.stack([stability < stable, cut_off, area >= max_area])
        return fails, stability, box, bits

    def filter_some(state: tuple[Array, Selection]) -> tuple[Array, Selection]:
        done, selection = state
        indices = jax.lax.dynamic_slice(order, (done,), (at_once,))
        if at_once > 1:
            fails, stability, boxes, bits = jax.vmap(measure)(indices)
        else:  # under vmap a loop computes and keeps its results with every step
            fails, stability, boxes, bits = jax.tree.map(lambda x: x[None], measure(indices[0]))
        counted = done + jnp.arange(at_once) < total
        stays = counted & ~fails.any(1)
        first = jnp.argsort(~stays, stable=True)
        # Of the filters that a mask fails the first one counts.
        drops = counted[:, None] & fails & (jnp.cumsum(fails, 1) == 1)
        dropped = (
            selection.dropped.predicted_iou,
            *(
                old.at[indices // (Q * M)].add(new)
                for old, new in zip(selection.dropped[1:], drops.T.astype(int), strict=True)
            ),
        )
        found = Selection(stays.sum(), Dropped(*dropped), indices, flat_iou[indices], stability, boxes, bits)
        # What does not stay is written too, behind, and overwritten by the next.
        arrays = [
            jax.lax.dynamic_update_slice_in_dim(old, new[first].astype(old.dtype), selection.kept, 0)
            for old, new in zip(selection[2:], found[2:], strict=True)
        ]
        return done + at_once, Selection(selection.kept + found.kept, found.dropped, *arrays)

    nothing = jnp.zeros(B, int)
    empty = Selection(
        jnp.zeros((), int),
        Dropped(too_low, nothing, nothing, nothing),
        jnp.zeros(N + at_once, int),
        jnp.zeros(N + at_once),
        jnp.zeros(N + at_once),
        jnp.zeros((N + at_once, 4), int),
        jnp.zeros((N + at_once, Wp, Hp // 8), jnp.uint8),
    )
    return jax.lax.while_loop(lambda state: state[0] < total, filter_some, (jnp.zeros((), int), empty))[1]


class _Resized(NamedTuple):
    """A mask at the size of the crop."""

    certain: Int[Array, ""]  # pixels above the higher threshold, +offset
    possible: Int[Array, ""]  # pixels above the lower one, -offset
    bits: UInt8[Array, "Wp Hp8"]


_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def resize_whole(logits: Float[Array, "S S"], frame: Frame) -> _Resized:
    """Resizes a mask to the crop of a frame."""
    plane = _einsum("mibr,mrs->simb", frame.rows, logits[_near(frame.row_starts, frame.rows)])
    plane = plane.reshape(len(logits), -1)  # (S, Hp)
    plane = _einsum("nws,nsh->nwh", frame.columns, plane[_near(frame.column_starts, frame.columns)])
    plane = plane.reshape(-1, plane.shape[-1])
    h, w = frame.size
    return _threshold(plane, frame, plane.size - h * w)


def resize_tiles(logits: Float[Array, "S S"], frame: Frame) -> _Resized:
    """Does the same as `resize_whole`, tile by tile, without the tiles that are below the lower threshold."""
    m, _, b, r = frame.rows.shape
    n, w, s = frame.columns.shape
    highest = logits[_near(frame.row_starts, frame.rows)].max(1)[:, _near(frame.column_starts, frame.columns)].max(-1)
    needed = (highest > -frame.thresholds[2]).reshape(m * n)  # interpolation stays below the highest of the neighbours
    order = jnp.argsort(~needed, stable=True)

    def add_tile(k: Array, sums: _Resized) -> _Resized:
        i, j = jnp.divmod(order[k], n)
        part = jax.lax.dynamic_slice(logits, (frame.row_starts[i], frame.column_starts[j]), (r, s))
        plane = _einsum("ibr,rs->sib", frame.rows[i], part).reshape(s, 8 * b)
        plane = _einsum("ws,sh->wh", frame.columns[j], plane)
        height, width = (
            jnp.clip(length - tile * side, 0, side)
            for length, tile, side in zip(frame.size, (i, j), (8 * b, w), strict=True)
        )
        tile = _threshold(plane, frame, plane.size - height * width)
        bits = jax.lax.dynamic_update_slice(sums.bits, tile.bits, (j * w, i * b))
        return _Resized(sums.certain + tile.certain, sums.possible + tile.possible, bits)

    nothing = _Resized(jnp.zeros((), int), jnp.zeros((), int), jnp.zeros((n * w, m * b), jnp.uint8))
    return jax.lax.fori_loop(0, needed.sum(), add_tile, nothing)


def _near(starts: Int[Array, " n"], blocks: Array) -> Int[Array, "n s"]:
    return starts[:, None] + jnp.arange(blocks.shape[-1])


def _threshold(plane: Float[Array, "W H"], frame: Frame, filling: Int[Array, ""]) -> _Resized:
    """Counts and packs the pixels of a plane, of which as many as `filling` lie beside the crop and are 0."""
    offset = frame.thresholds[2]
    possible = (plane > -offset).sum() - jnp.where(offset > 0, filling, 0)
    mask = (plane > 0).astype(jnp.uint8).reshape(len(plane), 8, -1)
    bits = functools.reduce(operator.or_, (mask[:, i] << (7 - i) for i in range(8)))
    return _Resized((plane > offset).sum(), possible, bits)
