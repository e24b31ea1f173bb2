"""Which box belongs to which object, and which boxes a step learns from. One image; shapes are static."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.detection.boxes import not_empty, pairwise_iou


class Matches(NamedTuple):
    """Of each box: the object that it overlaps most, and whether it is taken for it or for background (or neither)."""

    objects: Int[Array, " N"]
    positive: Bool[Array, " N"]
    negative: Bool[Array, " N"]


class Sample(NamedTuple):
    """Numbers of the boxes to learn from, positives first."""

    indices: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


def match_boxes(
    boxes: Float[Array, "N 4"],
    truth: Float[Array, "Q 4"],
    exists: Bool[Array, " Q"],
    low: float,
    high: float,
    *,
    best_for_each: bool = False,
) -> Matches:
    """Boxes with an IoU below `low` are background, from `high` on they are the object's.

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
    key: Key[Array, ""], positive: Bool[Array, " N"], negative: Bool[Array, " N"], count: int, share: float
) -> Sample:
    """Up to `count` boxes at random; positives for at most `share` of them, negatives for the rest."""
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


def usable(boxes: Float[Array, "... 4"], valid: Bool[Array, "..."]) -> tuple[Float[Array, "... 4"], Bool[Array, "..."]]:
    """Boxes with unit squares in place of those that are not valid or empty, so that no formula divides by zero."""
    valid = valid & not_empty(boxes)
    return jnp.where(valid[..., None], boxes, jnp.array([0.0, 0.0, 1.0, 1.0])), valid
