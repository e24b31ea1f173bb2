"""The training step: one pure function of a state and a global batch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from sam_jax.config import SamConfig, TrainConfig
from sam_jax.modeling import decode_masks, encode_image, encode_prompts, normalize_images
from sam_jax.prompting.simulate import first_prompts, next_points, picture_pixels, round_schedule
from sam_jax.training.losses import segmentation_loss
from sam_jax.types import PAD, Batch, Params, Prediction, Prompts


class TrainState(NamedTuple):
    """All that a run must save to go on."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


def resize_logits(logits: Float[Array, "... l l"], side: int) -> Float[Array, "... L L"]:
    """Bilinear, as PyTorch with align_corners=False and no antialias."""
    if logits.shape[-1] == side:
        return logits
    return jax.image.resize(logits, (*logits.shape[:-2], side, side), "bilinear", antialias=False)


def run_rounds(
    params: Params, batch: Batch, key: Key[Array, ""], config: TrainConfig, *, training: bool
) -> dict[str, Float[Array, "R B Q"]]:
    """Encodes each picture once and plays all rounds of prompts on it.

    Round 0 has one prompt and asks for three masks; of these the one with the highest predicted IoU is fed back. Every
    later round carries that mask's logits as a prompt, is hence no longer ambiguous, and asks for the single mask.

    Returns:
        per round, picture and mask: loss, focal, dice, iou_error, iou, oracle_iou.
    """
    model: SamConfig = config.model
    side, low_res = config.loss.size, model.low_res_size
    prompt_key, schedule_key, drop_key, rounds_key = jax.random.split(key, 4)
    truth = batch.masks.astype(jnp.float32)
    inside = picture_pixels(batch.sizes, side, model)
    pixels = inside.astype(jnp.float32)

    images = normalize_images(batch.images, batch.sizes, model)
    encoder_key = drop_key if training else None
    embeddings = encode_image(
        params, images, model, drop_path=config.drop_path, remat=config.remat and training, key=encoder_key
    )

    def decode(prompts: Prompts, multimask_output: bool, round_key: jax.Array) -> tuple[Prediction, dict, jax.Array]:
        encoded = encode_prompts(params, prompts, model)
        prediction = decode_masks(
            params,
            embeddings,
            encoded,
            model,
            multimask_output=multimask_output,
            dropout=config.decoder_dropout,
            key=jax.random.fold_in(round_key, 1) if training else None,
        )
        trusted = jnp.argmax(prediction.iou_predictions, -1)[..., None, None, None]
        logits = resize_logits(prediction.low_res_logits, side)
        loss, terms = segmentation_loss(logits, prediction.iou_predictions, truth, pixels, config.loss)
        chosen = jnp.take_along_axis(prediction.low_res_logits, trusted, 2)[:, :, 0]
        return prediction, terms | {"loss": loss}, chosen

    points, labels = first_prompts(prompt_key, batch, model, config.prompts)
    first_key, later_key = jax.random.split(rounds_key)
    _, first_terms, logits = decode(Prompts(points, labels), True, first_key)
    adds_point = round_schedule(schedule_key, config.prompts)
    rounds = len(adds_point)
    if not rounds:
        return jax.tree.map(lambda x: x[None], first_terms)

    def play_round(carry: tuple, inputs: tuple) -> tuple[tuple, dict]:
        points, labels, logits, slot = carry
        round_key, adds = inputs
        predicted = resize_logits(logits, side) > 0
        click, label = next_points(round_key, predicted, batch.masks, inside, model)
        points = jax.lax.dynamic_update_index_in_dim(points, click, slot, 2)
        labels = jax.lax.dynamic_update_index_in_dim(labels, jnp.where(adds, label, PAD), slot, 2)
        prompts = Prompts(points, labels, jnp.asarray(logits).reshape(*labels.shape[:2], low_res, low_res))
        _, terms, logits = decode(prompts, False, round_key)
        return (points, labels, logits, slot + adds), terms

    body = jax.checkpoint(play_round) if config.remat and training else play_round
    keys = jax.random.split(later_key, rounds)
    _, later_terms = jax.lax.scan(body, (points, labels, logits, jnp.int32(2)), (keys, adds_point))
    return jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), first_terms, later_terms)


def mean_over_masks(terms: dict[str, jax.Array], batch: Batch) -> dict[str, Float[Array, " R"]]:
    """Per round, the mean over the masks that exist in the global batch."""
    weight = batch.valid / jnp.maximum(batch.valid.sum(), 1)
    return {name: (values * weight).sum((1, 2)) for name, values in terms.items()}


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from all rounds on one batch; the loss is the sum over rounds of the mean over masks.

    Args:
        key: the run's key; the step's own is folded from it, so that a resumed run draws what it would have drawn.

    Returns:
        the new state, and metrics: arrays per round, and `grad_norm`.
    """
    step_key = jax.random.fold_in(key, state.step)

    def loss_fn(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        metrics = mean_over_masks(run_rounds(params, batch, step_key, config, training=True), batch)
        return metrics["loss"].sum(), metrics

    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return TrainState(params, opt_state, state.step + 1), metrics


def validation_step(
    params: Params, batch: Batch, key: Key[Array, ""], *, config: TrainConfig
) -> tuple[dict[str, Float[Array, " R"]], Int[Array, ""]]:
    """The rounds without learning: means over the batch's masks, and how many masks there were."""
    terms = run_rounds(params, batch, key, config, training=False)
    return mean_over_masks(terms, batch), batch.valid.sum()
