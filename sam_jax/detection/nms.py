"""Greedy non-maximum suppression with static shapes, exact: what falls is what a sequential program lets fall.

Two ways for two cases. Proposals: few groups, and many boxes stay; all pairs are compared at once. Detections: many
groups (classes), and few boxes stay; the best is taken again and again, and no cut to candidates is needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sam_jax.detection.boxes import pairwise_iou


def boxes_that_stay(boxes: Float[Array, "N 4"], valid: Bool[Array, " N"], threshold: float) -> Bool[Array, " N"]:
    """Returns which boxes stay: those that no better box that stays overlaps with an IoU above the threshold.

    Who stays follows from who of the better ones stays. So the rule, applied to all boxes at once again and again, has
    the first right after one round, those that depend on it alone after two, and so on; it ends when nothing changes.

    Args:
        boxes: best first.
        valid: those that take part; the others do not stay.
    """
    N = boxes.shape[0]
    beats = (pairwise_iou(boxes, boxes) > threshold) & (jnp.arange(N)[:, None] < jnp.arange(N))

    def apply_rule(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays, _ = state
        new = valid & ~(beats & stays[:, None]).any(0)
        return new, (new != stays).any()

    return jax.lax.while_loop(lambda state: state[1], apply_rule, (valid, jnp.array(True)))[0]


def pick_best(
    boxes: Float[Array, "R G 4"], scores: Float[Array, "R K"], threshold: float, count: int
) -> tuple[Int[Array, " {count}"], Int[Array, " {count}"], Float[Array, " {count}"]]:
    """Returns the best `count` pairs of box and class after suppression within each class, best first.

    Args:
        boxes: of each class (G = K), or one for all (G = 1).
        scores: -inf where there is nothing.

    Returns:
        indices of boxes, classes and scores; a score of -inf where there are fewer.
    """
    shared = boxes.shape[1] == 1

    def pick(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        scores, best = state  # `best` is the highest score of each class
        k = best.argmax()
        column = scores[:, k]
        r = column.argmax()
        of_class = boxes[:, 0] if shared else boxes[:, k]
        overlap = pairwise_iou(of_class[r][None], of_class)[0]
        column = jnp.where(overlap > threshold, -jnp.inf, column).at[r].set(-jnp.inf)
        return (scores.at[:, k].set(column), best.at[k].set(column.max())), (r, k, best[k])

    _, picked = jax.lax.scan(pick, (scores, scores.max(0)), length=count)
    return picked
