"""Prepares a model for learning the text prompt: its config, the params it lacks, and the CLIP that embeds objects."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Key

from sam_jax.checkpoints.hub import load_clip
from sam_jax.clip.config import ClipConfig
from sam_jax.clip.model import Clip
from sam_jax.config import SamConfig, TrainConfig
from sam_jax.errors import UserError
from sam_jax.modeling.prompt_encoder import init_text_projection
from sam_jax.types import Params


def load_run_clip(config: TrainConfig) -> Clip | None:
    """Loads the CLIP of a run; None where it trains no text prompt.

    Raises:
        ValueError: settings that do not go with it; and what `load_clip` raises.
    """
    if config.text.clip is None:
        return None
    if config.finetune.cache_embeddings or config.finetune.cache_views:
        raise UserError(
            "text prompts are made from the images, which finetune.cache-embeddings and finetune.cache-views leave "
            "out; leave out the cache, or text.clip"
        )
    return load_clip(config.text.clip)


def with_text_prompt(model: SamConfig, clip: ClipConfig) -> SamConfig:
    """Returns the config of the model with a text prompt for this CLIP.

    Raises:
        ValueError: it has one for another CLIP.
    """
    wanted = dataclasses.replace(model, text_dim=clip.embedding_dim, text_encoder=clip.name)
    if model.text_dim and model != wanted:
        raise UserError(
            f"model {model.name!r} has a text prompt for CLIP {model.text_encoder!r}, {model.text_dim} wide, and "
            f"text.clip is {clip.name!r}, {clip.embedding_dim} wide"
        )
    return wanted


def add_text_projection(params: Params, model: SamConfig, key: Key[Array, ""]) -> Params:
    """Returns the params of a model, with new ones for its text prompt if they have none."""
    prompt_encoder = params["prompt_encoder"]
    if "text_projection" in prompt_encoder:
        return params
    return params | {"prompt_encoder": prompt_encoder | {"text_projection": init_text_projection(model, key)}}
