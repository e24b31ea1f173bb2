"""The detector's training step: a pure function of a state and a global batch, as `sam_jax.parallel.wrap` takes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Shaped

from sam_jax.detection.boxes import pairwise_iou
from sam_jax.detection.detector import Detections, find_objects
from sam_jax.training.detector.config import DetectorTrainConfig
from sam_jax.training.detector.losses import detector_losses, true_objects
from sam_jax.training.step import TrainState, image_numbers, model_params, total_of, update_state
from sam_jax.training.trainable import join_params
from sam_jax.types import Batch, Params


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    config: DetectorTrainConfig,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Shaped[Array, "..."]]]:
    """Makes one update (`update_state`) from one batch.

    Args:
        key: the run's key; the step's own is folded from it, so that a resumed run draws what it would have drawn.
        axis_name: of `jax.pmap`, if it runs under that.

    Returns:
        the new state; each loss, their sum, `objects`, and the metrics of `update_state`.
    """
    step_key, numbers = jax.random.fold_in(key, state.step), image_numbers(batch, axis_name)

    def loss_fn(trained: Params) -> tuple[Float[Array, ""], dict[str, Shaped[Array, "..."]]]:
        params = join_params(trained, state.frozen, config.finetune)
        terms, _, _ = detector_losses(params, batch, step_key, numbers, config, training=True, axis_name=axis_name)
        loss = jnp.sum(jnp.stack(list(terms.values())))
        return loss, terms | {"loss": loss, "objects": batch.valid.sum().astype(jnp.float32)}

    grads, metrics = total_of(jax.grad(loss_fn, has_aux=True)(state.params), axis_name)
    state, update = update_state(state, grads, config, optimizer)
    return state, metrics | update


def validation_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    config: DetectorTrainConfig,
    axis_name: str | None = None,
) -> dict[str, Shaped[Array, "..."]]:
    """Computes the losses without learning, and how many of the global batch's `objects` were found.

    `found`: a detection overlaps the object's box with an IoU of at least 0.5; `found_closely`: of at least 0.75.
    """
    params, numbers = model_params(state, config), image_numbers(batch, axis_name)
    terms, maps, proposals = detector_losses(params, batch, key, numbers, config, training=False, axis_name=axis_name)
    detections = find_objects(params, maps, proposals, batch.sizes, config.model, dtype=jnp.dtype(config.dtype))
    best = best_overlaps(detections, batch)
    counts = {
        "found": (best >= 0.5).sum(),
        "found_closely": (best >= 0.75).sum(),
        "objects": batch.valid.sum(),
    }
    loss = jnp.sum(jnp.stack(list(terms.values())))
    return total_of(terms | {"loss": loss} | counts, axis_name)


def best_overlaps(detections: Detections, batch: Batch) -> Float[Array, "B Q"]:
    """Returns the highest IoU of each object's box with a detection; 0 where there is no object."""
    truth = true_objects(batch)
    iou = pairwise_iou(truth.boxes, detections.boxes)
    return jnp.where(truth.exists, jnp.where(detections.valid[:, None], iou, 0).max(-1), 0)


def preview_step(state: TrainState, batch: Batch, key: Key[Array, ""], *, config: DetectorTrainConfig) -> Detections:
    """Returns what is found on a few images."""
    params, numbers = model_params(state, config), image_numbers(batch, None)
    _, maps, proposals = detector_losses(params, batch, key, numbers, config, training=False, axis_name=None)
    return find_objects(params, maps, proposals, batch.sizes, config.model, dtype=jnp.dtype(config.dtype))
