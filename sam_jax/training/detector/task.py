"""Training a detector: the params that a run starts from, and how its losses and detections are called and drawn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.checkpoints import load_pretrained_encoder, save_checkpoint
from sam_jax.checkpoints.hub import load_model
from sam_jax.detection.detector import Detections, init_detector
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of
from sam_jax.modeling.image_encoder import is_neck
from sam_jax.ops.draw import draw_masks
from sam_jax.training.detector.config import DetectorTrainConfig
from sam_jax.training.detector.step import preview_step, train_step, validation_step
from sam_jax.training.preview import Preview, shown_images
from sam_jax.training.task import Metrics, TrainingTask, Values
from sam_jax.types import Batch, Params


def start_detector(config: DetectorTrainConfig) -> tuple[TrainingTask, Params]:
    """Returns what a run trains, and the params that it starts from.

    Raises:
        UserError: settings that do not go together, or a model that cannot be loaded.
    """
    return detector_task(config), initial_params(config)


def detector_task(config: DetectorTrainConfig) -> TrainingTask:
    """Returns the training of a detector. The checkpoint with the lowest validation loss is its best."""
    return TrainingTask(
        config=config,
        frame=config.model.encoder,
        encoder=config.model.encoder,
        mask_size=config.mask_size,
        images_at_once=config.data.batch_size,
        train_step=functools.partial(train_step, config=config),
        validation_step=functools.partial(validation_step, config=config),
        preview_step=functools.partial(preview_step, config=config),
        count="objects",
        summarize=summarize,
        summarize_validation=summarize_validation,
        describe=describe,
        score=lambda values: -values["loss"],
        draw=draw_detections,
        save=lambda path, params: save_checkpoint(path, params, config.model),
        curves=(("loss",), ("found", "found_closely")),
    )


def summarize(metrics: Metrics) -> Values:
    return {name: float(value) for name, value in metrics.items()}


def summarize_validation(batches: Sequence[Metrics]) -> Values:
    """Returns the mean losses of the batches, and the fractions of their objects that were found."""
    values = {name: float(np.mean([batch[name] for batch in batches])) for name in batches[0]}
    objects = max(values.pop("objects"), 1e-9)
    return {name: value / objects if name.startswith("found") else value for name, value in values.items()}


def describe(values: Values) -> str:
    loss = f"loss {values['loss']:.3f}"
    if "found" not in values:  # a training step, which looks for nothing
        return loss
    return f"{loss}; boxes found with IoU 0.5: {values['found']:.1%}, with 0.75: {values['found_closely']:.1%}"


def initial_params(config: DetectorTrainConfig) -> Params:
    """Returns random params, with the image encoder of a SAM or of a masked autoencoder where the config names one.

    Raises:
        UserError: both are named, or an encoder of another size.
    """
    if config.init_from is not None and config.init_encoder_from is not None:
        raise UserError("expected one start of the image encoder, got init-from and init-encoder-from")
    encoder, learned = config.model.encoder, {}
    if config.init_from is not None:
        start = load_model(config.init_from)
        old = start.config.encoder
        own = {name: value for name, value in start.params["image_encoder"].items() if not is_neck(name)}
        learned = encoder_of(old).resize(own, old, dataclasses.replace(old, image_size=encoder.image_size))
        wanted = jax.eval_shape(functools.partial(encoder_of(encoder).init, encoder), jax.random.key(0))
        if jax.tree.map(jnp.shape, learned) != jax.tree.map(jnp.shape, wanted):
            raise UserError(
                f"expected an image encoder like that of model.encoder ({encoder}), {config.init_from} has "
                f"another ({old}); change model.encoder or init-from"
            )
    params = init_detector(config.model, jax.random.key(config.seed))
    if learned:
        params = params | {"image_encoder": learned}
    if config.init_encoder_from is not None:
        params = load_pretrained_encoder(config.init_encoder_from, params, encoder)
    return jax.tree.map(jnp.asarray, params)


def draw_detections(batch: Batch, found: Detections, most: int = 12) -> Preview:
    """Draws the target boxes of each image, and the best detections."""
    shown, images, scale = shown_images(batch)
    targets, detections = [], []
    for b, image in zip(shown, images, strict=True):
        best = np.flatnonzero(np.asarray(found.valid)[b])[:most]
        targets.append(draw_masks(image, [], boxes=(batch.boxes[b, batch.valid[b]] * scale).tolist()))
        detections.append(draw_masks(image, [], boxes=(np.asarray(found.boxes)[b, best] * scale).tolist()))
    return Preview({"target": targets}, {"best detections": detections})
