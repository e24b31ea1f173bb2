"""Focal, dice and IoU losses, per mask and unreduced. All in float32, over the pixels of the image only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sam_jax.config import LossConfig


def focal_loss(
    logits: Float[Array, "... H W"],
    truth: Float[Array, "... H W"],
    pixels: Float[Array, "... H W"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "..."]:
    """Mean over the pixels of -a_t (1 - p_t)^gamma log p_t.

    Args:
        logits: before the sigmoid.
        truth: 0 or 1.
        pixels: 1 where a pixel counts, 0 where it is padding.

    Reference: Lin et al. 2017; alpha and gamma as in MaskFormer, from which the paper takes the 20:1 weights.
    """
    # optax.sigmoid_focal_loss gives the same, but stacks arrays as large as the upscaled logits, for soft labels: with
    # its gradient 5 times the memory and 8 times the traffic of this (256 x 256, 48 masks, CPU). optax.dice_loss takes
    # no weights for pixels.
    positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jnp.exp(positive)
    loss = -alpha * truth * (1 - p) ** gamma * positive - (1 - alpha) * (1 - truth) * p**gamma * negative
    return (loss * pixels).sum((-2, -1)) / jnp.maximum(pixels.sum((-2, -1)), 1.0)


def dice_loss(
    logits: Float[Array, "... H W"], truth: Float[Array, "... H W"], pixels: Float[Array, "... H W"]
) -> Float[Array, "..."]:
    """1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1). Reference: Milletari et al. 2016."""
    p, truth = jax.nn.sigmoid(logits) * pixels, truth * pixels
    overlap = (p * truth).sum((-2, -1))
    return 1.0 - (2.0 * overlap + 1.0) / (p.sum((-2, -1)) + truth.sum((-2, -1)) + 1.0)


def mask_iou(
    logits: Float[Array, "... H W"], truth: Float[Array, "... H W"], pixels: Float[Array, "... H W"]
) -> Float[Array, "..."]:
    """IoU of the thresholded logits with the truth; two empty masks give 0."""
    predicted, truth = (logits > 0) * pixels, truth * pixels
    overlap = (predicted * truth).sum((-2, -1))
    union = predicted.sum((-2, -1)) + truth.sum((-2, -1)) - overlap
    return overlap / jnp.maximum(union, 1.0)


def segmentation_loss(
    logits: Float[Array, "B Q M H W"],
    iou_predictions: Float[Array, "B Q M"],
    truth: Float[Array, "B Q H W"],
    pixels: Float[Array, "B H W"],
    config: LossConfig,
) -> tuple[Float[Array, "B Q"], dict[str, Float[Array, "B Q"]]]:
    """Loss of each prompt: that of its best mask by 20 focal + dice, plus the error of that mask's predicted IoU.

    Returns:
        the loss, and its terms: focal, dice, iou_error, iou (of the mask that the model trusts most), oracle_iou.

    Reference: paper, section 3 "Resolving ambiguity" and A "Losses".
    """
    truth, pixels = truth[:, :, None], pixels[:, None, None]
    focal = focal_loss(logits, truth, pixels, alpha=config.focal_alpha, gamma=config.focal_gamma)
    dice = dice_loss(logits, truth, pixels)
    iou = jax.lax.stop_gradient(mask_iou(logits, truth, pixels))
    best = jnp.argmin(config.focal * focal + config.dice * dice, -1)
    trusted = jnp.argmax(iou_predictions, -1)

    def pick(values: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, index[..., None], -1)[..., 0]

    iou_error = jnp.square(iou_predictions - iou)
    terms = {
        "focal": pick(focal, best),
        "dice": pick(dice, best),
        "iou_error": iou_error.mean(-1) if config.iou_of_all_masks else pick(iou_error, best),
    }
    loss = config.focal * terms["focal"] + config.dice * terms["dice"] + config.iou * terms["iou_error"]
    return loss, terms | {"iou": pick(iou, trusted), "oracle_iou": iou.max(-1)}
