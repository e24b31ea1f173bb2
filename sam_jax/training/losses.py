"""Focal, dice and IoU losses, per mask and unreduced. All in float32, over the pixels of the image only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sam_jax.config import LossConfig
from sam_jax.types import AnyArray


def focal_loss(
    logits: Float[AnyArray, "*batch H W"],
    target_masks: Float[AnyArray, "*#batch H W"],
    pixels: Float[AnyArray, "*#batch H W"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*batch"]:
    """Returns the mean of -a_t (1 - p_t)^gamma log p_t over the pixels of each mask.

    Args:
        logits: before the sigmoid.
        target_masks: 0 or 1.
        pixels: 1 where a pixel counts, 0 where it is padding.

    Reference: Lin et al. 2017; alpha and gamma as in MaskFormer, from which the paper takes the 20:1 weights.
    """
    # optax.sigmoid_focal_loss gives the same, but stacks arrays as large as the upscaled logits, for soft labels: with
    # its gradient 5 times the memory and 8 times the traffic of this (256 x 256, 48 masks, CPU). optax.dice_loss takes
    # no weights for pixels.
    positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jnp.exp(positive)
    loss = -alpha * target_masks * (1 - p) ** gamma * positive - (1 - alpha) * (1 - target_masks) * p**gamma * negative
    return (loss * pixels).sum((-2, -1)) / jnp.maximum(pixels.sum((-2, -1)), 1.0)


def dice_loss(
    logits: Float[AnyArray, "*batch H W"],
    target_masks: Float[AnyArray, "*#batch H W"],
    pixels: Float[AnyArray, "*#batch H W"],
) -> Float[Array, "*batch"]:
    """Returns 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1) of each mask.

    The arguments are those of `focal_loss`. Reference: Milletari et al. 2016.
    """
    p, target_masks = jax.nn.sigmoid(logits) * pixels, target_masks * pixels
    overlap = (p * target_masks).sum((-2, -1))
    return 1.0 - (2.0 * overlap + 1.0) / (p.sum((-2, -1)) + target_masks.sum((-2, -1)) + 1.0)


def mask_iou(
    logits: Float[AnyArray, "*batch H W"],
    target_masks: Float[AnyArray, "*#batch H W"],
    pixels: Float[AnyArray, "*#batch H W"],
) -> Float[Array, "*batch"]:
    """Returns the IoU of the thresholded logits with the target; two empty masks give 0.

    The arguments are those of `focal_loss`.
    """
    predicted, target_masks = (logits > 0) * pixels, target_masks * pixels
    overlap = (predicted * target_masks).sum((-2, -1))
    union = predicted.sum((-2, -1)) + target_masks.sum((-2, -1)) - overlap
    return overlap / jnp.maximum(union, 1.0)


def segmentation_loss(
    logits: Float[AnyArray, "B Q M H W"],
    iou_predictions: Float[AnyArray, "B Q M"],
    target_masks: Float[AnyArray, "B Q H W"],
    pixels: Float[AnyArray, "B H W"],
    config: LossConfig,
) -> tuple[Float[Array, "B Q"], dict[str, Float[Array, "B Q"]]]:
    """Returns the loss of each prompt: that of its best mask by 20 focal + dice, plus the error of its predicted IoU.

    A part of it, `trusted`, is of the mask that the model trusts most, whichever that is: it is what a user gets.

    Returns:
        the loss, and its terms: focal, dice, iou_error, iou (of the mask that the model trusts most), oracle_iou.

    Reference: paper, section 3 "Resolving ambiguity" and A "Losses".
    """
    target_masks, pixels = target_masks[:, :, None], pixels[:, None, None]
    focal = focal_loss(logits, target_masks, pixels, alpha=config.focal_alpha, gamma=config.focal_gamma)
    dice = dice_loss(logits, target_masks, pixels)
    iou = jax.lax.stop_gradient(mask_iou(logits, target_masks, pixels))
    mask_loss = config.focal * focal + config.dice * dice
    best = jnp.argmin(mask_loss, -1)
    trusted = jnp.argmax(iou_predictions, -1)

    def pick(values: Array, index: Array) -> Array:
        return jnp.take_along_axis(values, index[..., None], -1)[..., 0]

    iou_error = jnp.square(iou_predictions - iou)
    terms = {
        "focal": pick(focal, best),
        "dice": pick(dice, best),
        "iou_error": iou_error.mean(-1) if config.iou_of_all_masks else pick(iou_error, best),
    }
    loss = (1 - config.trusted) * pick(mask_loss, best) + config.trusted * pick(mask_loss, trusted)
    loss += config.iou * terms["iou_error"]
    return loss, terms | {"iou": pick(iou, trusted), "oracle_iou": iou.max(-1)}
