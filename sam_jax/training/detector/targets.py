"""Matches boxes to objects and samples those that a step learns from. One image; shapes are static."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.detection.boxes import not_empty, pairwise_iou
from sam_jax.types import AnyArray


class Matches(NamedTuple):
    """The object that each box overlaps most, and whether the box is taken for it, for background, or for neither."""

    objects: Int[Array, " N"]
    positive: Bool[Array, " N"]
    negative: Bool[Array, " N"]


class Sample(NamedTuple):
    """Numbers of the boxes to learn from, positives first."""

    indices: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


def match_boxes(
    boxes: Float[AnyArray, "N 4"],
    truth: Float[AnyArray, "Q 4"],
    exists: Bool[AnyArray, " Q"],
    low: float,
    high: float,
    *,
    best_for_each: bool = False,
) -> Matches:
    """Takes boxes with an IoU below `low` for background, and from `high` on for the object.

    Args:
        exists: which of `truth` are objects. Without any, all boxes are background.
        best_for_each: an object's best boxes are its own, whatever their IoU.
    """
    iou = jnp.where(exists[:, None], pairwise_iou(truth, boxes), 0.0)
    best = iou.max(0)
    positive = best >= high
    if best_for_each:
        positive |= ((iou == iou.max(1, keepdims=True)) & (iou > 0)).any(0)
    return Matches(iou.argmax(0), positive, (best < low) & ~positive)


def sample_boxes(
    key: Key[Array, ""], positive: Bool[AnyArray, " N"], negative: Bool[AnyArray, " N"], count: int, share: float
) -> Sample:
    """Draws up to `count` boxes: positives for at most `share` of them, negatives for the rest."""
    N, most = len(positive), int(count * share)

    def draw(key: Array, candidates: Array, most: int) -> tuple[Array, Array]:
        priority = jnp.where(candidates, jax.random.uniform(key, (N,)), -1.0)
        priority, indices = jax.lax.top_k(priority, min(most, N))
        return indices, priority >= 0

    first_key, second_key = jax.random.split(key)
    (ours, real), (others, free) = draw(first_key, positive, most), draw(second_key, negative, count)
    free &= jnp.arange(len(free)) < count - real.sum()
    indices, valid = jnp.concatenate([ours, others]), jnp.concatenate([real, free])
    is_positive = jnp.arange(len(indices)) < len(ours)
    order = jnp.argsort(~valid, stable=True)[:count]
    return Sample(indices[order], (is_positive & valid)[order], valid[order])


def usable(
    boxes: Float[AnyArray, "*batch 4"], valid: Bool[Array, "*batch"]
) -> tuple[Float[Array, "*batch 4"], Bool[Array, "*batch"]]:
    """Replaces boxes that are not valid or empty by unit squares, so that no formula divides by zero.

    Returns:
        the boxes, and which of them are valid and not empty.
    """
    valid = valid & not_empty(boxes)
    return jnp.where(valid[..., None], boxes, jnp.array([0.0, 0.0, 1.0, 1.0])), valid
