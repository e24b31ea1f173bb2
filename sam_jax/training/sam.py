"""Training a SAM: the params that a run starts from, and how its losses and predictions are called and drawn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints import load_pretrained_encoder, save_checkpoint
from sam_jax.checkpoints.hub import load_model
from sam_jax.clip.config import ClipConfig
from sam_jax.config import SamConfig, TrainConfig
from sam_jax.errors import UserError
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.modeling.image_encoder import frozen_part
from sam_jax.modeling.resize import resize_positions
from sam_jax.training.flops import step_flops
from sam_jax.training.preview import draw_predictions
from sam_jax.training.step import preview_step, train_step, validation_step
from sam_jax.training.task import Metrics, TrainingTask, Values
from sam_jax.training.text import add_text_projection, load_run_clip, with_text_prompt
from sam_jax.training.trainable import CLIP, encoder_work, trained_in_encoder
from sam_jax.types import Params

LOSSES = ("loss", "focal", "dice", "iou_error")


def start_sam(config: TrainConfig) -> tuple[TrainingTask, Params]:
    """Returns what a run trains, and the params that it starts from.

    Raises:
        UserError: settings that do not go together, or a model that cannot be loaded.
    """
    config, params, clip = initial_params(config)
    return sam_task(config, params, clip), params


def sam_task(config: TrainConfig, params: Params, clip: ClipConfig | None = None) -> TrainingTask:
    """Returns the training of a SAM.

    Args:
        params: of the whole model, or their shapes.
        clip: config of the CLIP in a run that trains the text prompt; the params of its image tower are in `params`.

    Raises:
        UserError: a batch that does not divide into its parts, or a cache of what learns.
    """
    if config.data.batch_size % config.accumulate:
        raise UserError(
            f"expected a batch that divides into {config.accumulate} parts (accumulate), "
            f"got {config.data.batch_size} images"
        )
    encoder = encoder_work(params, config.finetune)
    if config.finetune.cache_embeddings and encoder != "cached":
        raise UserError("expected a frozen image encoder with finetune.cache-embeddings; finetune.trainable has it")
    if config.finetune.cache_views:
        if config.finetune.cache_embeddings:
            raise UserError(
                "expected one of finetune.cache-embeddings and finetune.cache-views, got both; leave one out"
            )
        frozen_part(config.model, trained_in_encoder(params, config.finetune))  # refuses one that learns
    return TrainingTask(
        config=config,
        frame=config.model,
        encoder=config.model.encoder,
        mask_size=config.loss.size,
        images_at_once=config.data.batch_size // config.accumulate,
        train_step=functools.partial(train_step, config=config, clip=clip),
        validation_step=functools.partial(validation_step, config=config, clip=clip),
        preview_step=functools.partial(preview_step, config=config, clip=clip),
        count="masks",
        summarize=summarize,
        summarize_validation=summarize_validation,
        describe=describe,
        score=lambda values: values["iou"][-1],
        draw=lambda batch, preview: draw_predictions(batch, *preview),
        save=lambda path, params: save_checkpoint(path, params, config.model, everything=config.everything),
        curves=(LOSSES, ("iou",)),
        # Cached maps may be those of any part: what is left of the encoder's work is not known.
        flops=None
        if config.finetune.cache_views and encoder == "trained"
        else step_flops(config, encoder=encoder, clip=clip),
    )


def summarize(metrics: Metrics) -> Values:
    """Returns the means of the losses over the rounds, and the IoU after each round."""
    return {
        **{name: float(metrics[name].mean()) for name in LOSSES},
        "iou": [float(value) for value in metrics["iou"]],
        "oracle_iou": float(metrics["oracle_iou"][0]),
        **{name: float(metrics[name]) for name in ("learning_rate", "grad_norm", "skipped") if name in metrics},
    }


def summarize_validation(batches: Sequence[Metrics]) -> Values:
    """Returns the same as `summarize`, as means over all masks, from the batches' sums over theirs."""
    total: dict[str, Any] = jax.tree.map(lambda *values: np.sum(values, 0), *batches)
    return summarize({name: value / max(total["masks"], 1) for name, value in total.items()})


def describe(values: Values) -> str:
    first, last = values["iou"][0], values["iou"][-1]
    return f"loss {values['loss']:.3f}, mIoU {first:.3f} after the first prompt, {last:.3f} after the last round"


def initial_params(config: TrainConfig) -> tuple[TrainConfig, Params, ClipConfig | None]:
    """Returns the config with the model that the run trains, the params that it starts from, and its CLIP's config.

    The params are those of `init_from`, or random ones; the image tower of the CLIP is among them. What the checkpoint
    of `init_from` says of everything mode is in the config, where the config does not say otherwise.
    """
    clip, key = load_run_clip(config), jax.random.key(config.seed)

    def prepared(model: SamConfig) -> SamConfig:
        return model if clip is None else with_text_prompt(model, clip.config)

    if config.init_from is not None:
        start = load_model(config.init_from)
        own = prepared(start.config)
        config = dataclasses.replace(config, model=own if config.model_from_init else prepared(config.model))
        params = start.params if clip is None else add_text_projection(start.params, own, key)
        params = resize_positions(params, own, config.model)
        config = dataclasses.replace(
            config, everything=dataclasses.replace(start.everything, **config.everything.to_fields())
        )
    elif config.model_from_init:
        raise UserError("expected init-from, the name or path of the model to train, with model-from-init; got none")
    else:
        config = dataclasses.replace(config, model=prepared(config.model))
        params = align_cross_attention(init_params(config.model, key))
    if config.init_decoder_from is not None:
        params = params | _start_decoder(load_model(config.init_decoder_from), params)
    if config.init_encoder_from is not None:
        params = load_pretrained_encoder(config.init_encoder_from, params, config.model.encoder)
    if clip is not None:
        params = params | {CLIP: {"visual": clip.params["visual"]}}
    return config, jax.tree.map(jnp.asarray, params), None if clip is None else clip.config


def _start_decoder(start: Sam, params: Params) -> Params:
    """Returns the prompt encoder and the mask decoder of a model with another image encoder.

    Raises:
        UserError: they do not have the shapes of those in `params`.
    """
    parts = {name: start.params[name] for name in ("prompt_encoder", "mask_decoder")}
    shapes = [
        {name: np.shape(value) for name, value in flatten_dict({part: tree[part] for part in parts}, sep="/").items()}
        for tree in (parts, params)
    ]
    if unlike := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
        raise UserError(
            f"expected init-decoder-from with the decoder of the model to train, {start.config.name!r} differs in "
            f"{unlike}"
        )
    return parts


def align_cross_attention(params: Params) -> Params:
    """Makes queries and keys of the decoder's cross-attentions start equal.

    Their product is then close to a multiple of the identity, and a click attends from the first step to where it is:
    the Fourier features of near positions are alike. With independent projections a model from scratch first has to
    find that, which took it hundreds of steps of empty masks.
    """
    flat = flatten_dict(params, sep="/")
    for name in flat:
        if "token_to_image/k_proj" in name or "image_to_token/k_proj" in name:
            flat[name] = jnp.array(flat[name.replace("k_proj", "q_proj")])  # a copy: the step donates its buffers
    return unflatten_dict(flat, sep="/")
