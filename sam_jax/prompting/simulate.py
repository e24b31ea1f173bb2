"""Simulates an annotator: a first point or box, then points where the prediction is wrong. Jittable, static shapes.

A prompt has 2 + `point_rounds` slots. The first two hold either a click and its padding point, or the corners of a box;
each later slot holds the click of one round, or PAD while that round has not come.

Reference: paper, section A "Training algorithm"; decisions where it is silent are marked "Decision".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.config import PromptConfig, SamConfig
from sam_jax.types import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, NOT_A_POINT, PAD, AnyArray, Batch


def sample_pixel(
    key: Key[Array, ""], region: Bool[AnyArray, "... H W"]
) -> tuple[Int[Array, "... 2"], Bool[AnyArray, "..."]]:
    """Draws a pixel (x, y) uniformly from each region; also returns whether the region has any.

    A row is drawn by its part of the region and then a pixel within it, which needs no sum over the whole image.
    """
    lead, (H, W) = region.shape[:-2], region.shape[-2:]
    per_row = region.sum(-1)
    total = per_row.sum(-1)
    # Draw the r-th pixel of the region in reading order, r uniform in 0..total - 1.
    r = jnp.floor(jax.random.uniform(key, lead) * total).astype(jnp.int32)
    r = jnp.minimum(r, jnp.maximum(total - 1, 0))
    rows_done = jnp.cumsum(per_row, -1)
    y = jnp.minimum((rows_done <= r[..., None]).sum(-1), H - 1)
    row = jnp.take_along_axis(region, y[..., None, None], -2)[..., 0, :]
    before = jnp.take_along_axis(rows_done - per_row, y[..., None], -1)
    x = jnp.minimum((jnp.cumsum(row, -1) <= (r[..., None] - before)).sum(-1), W - 1)
    return jnp.stack([x, y], -1), total > 0


def to_input_frame(pixel: Int[Array, "... 2"], side: int, config: SamConfig) -> Float[Array, "... 2"]:
    """Moves pixels (x, y) of a `side` x `side` frame to the input frame, whose pixel centres are integers."""
    return (pixel + 0.5) * (config.image_size / side) - 0.5


def image_pixels(sizes: Int[AnyArray, "B 2"], side: int, config: SamConfig) -> Bool[Array, "B {side} {side}"]:
    """Returns which pixels of a `side` x `side` frame lie in the image and not in its padding.

    Args:
        sizes: (h, w) of the images, pixels of the input frame.
    """
    centres = (jnp.arange(side) + 0.5) * (config.image_size / side)
    inside = centres < sizes[..., None]
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def first_prompts(
    key: Key[Array, ""], batch: Batch, model: SamConfig, config: PromptConfig
) -> tuple[Float[Array, "B Q N 2"], Int[Array, "B Q N"]]:
    """Draws a point uniformly from each mask, or takes its box with Gaussian noise on every coordinate.

    Decision: the noisy box is clamped to the image.

    Returns:
        points in the input frame and labels, N = 2 + point_rounds.
    """
    choice_key, point_key, noise_key = jax.random.split(key, 3)
    pixel, _ = sample_pixel(point_key, batch.masks)
    point = to_input_frame(pixel, batch.masks.shape[-1], model)
    click = jnp.stack([point, jnp.zeros_like(point)], -2)

    corners = batch.boxes.reshape(*batch.boxes.shape[:-1], 2, 2)
    sides = corners[..., 1:, :] - corners[..., :1, :]
    limit = config.box_noise_max * model.image_size / 1024
    noise = jnp.clip(jax.random.normal(noise_key, corners.shape) * config.box_noise * sides, -limit, limit)
    width_height = batch.sizes[:, None, None, ::-1].astype(jnp.float32)
    box = jnp.clip(corners + noise, 0.0, width_height - 1.0)

    is_box = jax.random.bernoulli(choice_key, config.box_probability, batch.valid.shape)[..., None]
    points = jnp.where(is_box[..., None], box, click)
    labels = jnp.where(is_box, jnp.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]), jnp.array([FOREGROUND, NOT_A_POINT]))
    spare = ((0, 0), (0, 0), (0, config.point_rounds))
    return jnp.pad(points, (*spare, (0, 0))), jnp.pad(labels, spare, constant_values=PAD)


def next_points(
    key: Key[Array, ""],
    predicted: Bool[AnyArray, "B Q L L"],
    target_masks: Bool[AnyArray, "B Q L L"],
    pixels: Bool[AnyArray, "B L L"],
    model: SamConfig,
) -> tuple[Float[Array, "B Q 2"], Int[Array, "B Q"]]:
    """Draws a click uniformly from the error region: foreground on a missed pixel, background on a wrong one.

    Decision: where the prediction has no error the click is a background pixel, as in SAM 2.

    Args:
        pixels: those of the image, where clicks may be.

    Returns:
        points in the input frame and labels; PAD where there is no pixel to click on.
    """
    error_key, background_key = jax.random.split(key)
    pixels = pixels[:, None]
    pixel, any_error = sample_pixel(error_key, (predicted ^ target_masks) & pixels)
    background, any_background = sample_pixel(background_key, ~target_masks & pixels)
    x, y = pixel[..., 0], pixel[..., 1]
    row = jnp.take_along_axis(target_masks, y[..., None, None], -2)
    missed = jnp.take_along_axis(row, x[..., None, None], -1)[..., 0, 0]
    label = jnp.where(missed, FOREGROUND, BACKGROUND)
    label = jnp.where(any_error, label, jnp.where(any_background, BACKGROUND, PAD))
    pixel = jnp.where(any_error[..., None], pixel, background)
    return to_input_frame(pixel, target_masks.shape[-1], model), label


def round_schedule(key: Key[Array, ""], config: PromptConfig) -> Bool[Array, " R"]:
    """Draws which of the R rounds after the first add a point: not the last, nor `refine_rounds` - 1 others.

    Decision: there is one schedule per step, shared by the batch, for static shapes.
    """
    adds = jnp.arange(config.point_rounds + max(config.refine_rounds - 1, 0)) < config.point_rounds
    last = jnp.zeros(min(config.refine_rounds, 1), bool)
    return jnp.concatenate([jax.random.permutation(key, adds), last])
