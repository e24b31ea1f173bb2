"""Selects the params that learn: all, those of some names, or low-rank adapters beside frozen kernels.

Params are split into two nested dicts with the same names, one that learns and one that is frozen. Gradients, moments
and averages exist for the first alone.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from sam_jax.config import FinetuneConfig
from sam_jax.errors import UserError
from sam_jax.types import Params

FOURIER_MATRIX = "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"  # a buffer in the official code
STATISTICS = r"/(mean|var)$"  # of frozen batch norms
CLIP = "clip"  # beside the model's parts, in a run that trains the text prompt: the tower that embeds objects
EncoderWork = Literal["trained", "frozen", "cached"]
"""Forward and backward, forward alone, or nothing: images were encoded before the first step."""

DOWN, UP = "_lora_down", "_lora_up"  # what the names of an adapter's two factors add to that of their kernel


def split_params(params: Params, config: FinetuneConfig, key: Key[Array, ""]) -> tuple[Params, Params]:
    """Splits params into those that learn, adapters among them, and the frozen rest.

    An adapter of a kernel (in, out) is (in, rank), drawn as a kernel would be, and (rank, out), zero: training starts
    from the model as it is.

    Raises:
        ValueError: nothing learns, or `lora_targets` finds nothing, or a name that is no kernel.
    """
    flat = flatten_dict(params, sep="/")
    adapted = {name for name in flat if config.lora_rank and re.search(config.lora_targets, name)}
    if config.lora_rank and not adapted:
        raise UserError(f"expected finetune.lora_targets to find kernels, {config.lora_targets!r} finds none")
    if bad := sorted(name for name in adapted if flat[name].ndim != 2):
        raise UserError(f"expected finetune.lora_targets to find kernels (in, out), it also finds {bad}")
    trained = {
        name: value
        for name, value in flat.items()
        if re.search(config.trainable, name)
        and name not in adapted | {FOURIER_MATRIX}
        and not re.search(STATISTICS, name)
        and not name.startswith(f"{CLIP}/")
    }
    frozen = {name: value for name, value in flat.items() if name not in trained}
    for name in sorted(adapted):
        fan_in, fan_out = flat[name].shape
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        trained[name + DOWN] = jax.random.uniform(own_key, (fan_in, config.lora_rank), minval=-1.0) / fan_in**0.5
        trained[name + UP] = jnp.zeros((config.lora_rank, fan_out))
    if not trained:
        raise UserError(f"expected finetune.trainable to find params, {config.trainable!r} finds none")
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join_params(trained: Params, frozen: Params, config: FinetuneConfig) -> Params:
    """Joins what `split_params` made, and adds the adapters to their kernels: the params of a plain model."""
    flat = flatten_dict(trained, sep="/") | flatten_dict(frozen, sep="/")
    for name in [name for name in flat if name.endswith(DOWN)]:
        kernel = name.removesuffix(DOWN)
        down, up = flat.pop(name), flat.pop(kernel + UP)
        flat[kernel] = flat[kernel] + (config.lora_alpha / config.lora_rank) * (down @ up)
    return unflatten_dict(flat, sep="/")


def without_clip(params: Params) -> Params:
    """Returns the params without those of a CLIP."""
    return {name: part for name, part in params.items() if name != CLIP}


def trained_in_encoder(params: Params, config: FinetuneConfig) -> list[str]:
    """Returns the names of the params that learn below "image_encoder".

    Args:
        params: of the whole model, or their shapes.
    """
    trained = jax.eval_shape(lambda params: split_params(params, config, jax.random.key(0))[0], params)
    return list(flatten_dict(trained.get("image_encoder", {}), sep="/"))


def encoder_work(params: Params, config: FinetuneConfig) -> EncoderWork:
    """Returns what a training step does with the image encoder.

    Args:
        params: of the whole model, or their shapes.
    """
    if trained_in_encoder(params, config):
        return "trained"
    return "cached" if config.cache_embeddings or config.cache_views else "frozen"
