"""AdamW with warm-up, step decay and layer-wise learning rates."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sam_jax.config import EncoderConfig, OptimizerConfig
from sam_jax.modeling.encoders import encoder_of
from sam_jax.types import AnyArray, Params


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns a linear warm-up from 0 to the peak, which is divided by 10 at every step of `decay_steps`."""
    decay = optax.piecewise_constant_schedule(config.learning_rate, {step: 0.1 for step in config.decay_steps})

    def schedule(step: int | Int[AnyArray, ""]) -> Float[Array, ""]:
        return decay(step) * jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))

    return schedule


def next_learning_rate(config: OptimizerConfig, opt_state: optax.OptState) -> Float[Array, ""]:
    """Returns the rate of the next update, before its layer-wise factors.

    The optimizer counts the updates that it makes, and not the steps: updates that are left out do not move the rate.
    """

    def of_schedule(path: tuple, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"

    return learning_rate_schedule(config)(optax.tree.get(opt_state, "count", filtering=of_schedule))


def layer_scales(params: Params, encoder: EncoderConfig, decay: float) -> Params:
    """Returns the factor on each param's learning rate: decay^(n - i) in layer i of the encoder's n, else 1."""
    layers = encoder_of(encoder).layers(encoder)

    def scale(path: tuple, _: Any) -> float:
        part, *rest = (entry.key for entry in path)
        name = "/".join(rest)
        found = [i for i, pattern in enumerate(layers) if part == "image_encoder" and re.search(pattern, name)]
        return decay ** (len(layers) - found[0]) if found else 1.0

    return jax.tree_util.tree_map_with_path(scale, params)


def make_optimizer(config: OptimizerConfig, encoder: EncoderConfig, params: Params) -> optax.GradientTransformation:
    """Returns AdamW for the params that learn, of which only names and shapes are used.

    Weight decay applies to kernels; biases, norms, tokens, position tables and adapters are exempt (the paper does not
    say; SAM 2 does this).
    """
    scales = layer_scales(params, encoder, config.layer_decay)

    def decays(path: tuple, _: Any) -> bool:
        return path[-1].key == "kernel"

    def scale_by_layer(updates: Params, state: optax.EmptyState, params: Params | None = None) -> tuple:
        return jax.tree.map(jnp.multiply, updates, scales), state

    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(*config.betas, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=jax.tree_util.tree_map_with_path(decays, params)),
        optax.GradientTransformation(lambda _: optax.EmptyState(), scale_by_layer),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
