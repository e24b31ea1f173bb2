"""Trains a CLIP on images and their texts: the right text of each image among a batch's, and the other way round.

Reference: Radford et al. 2021, section 2.3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sam_jax.clip.config import ClipConfig
from sam_jax.clip.network import embed_images, embed_tokens
from sam_jax.progress import ProgressBar
from sam_jax.types import Params

LARGEST_SCALE = math.log(100.0)  # of the logits


class Pairs(NamedTuple):
    """Images with a text each."""

    images: Float[Array, "n S S 3"]  # normalised
    tokens: Int[Array, "n N"]


def contrastive_loss(
    params: Params, pairs: Pairs, config: ClipConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean cross-entropy of images over texts and of texts over images.

    Images of a batch that have the same text are equally right for it: with few different texts a batch holds many of
    them twice.

    Returns:
        the loss; and metrics: `loss`, and `accuracy`, the fraction of images whose likeliest text is theirs.
    """
    images = embed_images(params, pairs.images, config)
    texts = embed_tokens(params, pairs.tokens, config)
    logits = jnp.exp(jnp.minimum(params["logit_scale"], LARGEST_SCALE)) * images @ texts.T
    same = (pairs.tokens[:, None] == pairs.tokens[None]).all(-1)
    share = same / same.sum(-1, keepdims=True)  # symmetric
    losses = [optax.softmax_cross_entropy(scores, share).mean() for scores in (logits, logits.T)]
    right = jnp.take_along_axis(same, logits.argmax(-1)[:, None], 1)
    loss = sum(losses) / 2
    return loss, {"loss": loss, "accuracy": right.mean()}


def train_clip(
    params: Params,
    config: ClipConfig,
    batches: Iterator[Pairs],
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int = 100,
    weight_decay: float = 0.05,
    log_every: int = 100,
) -> Params:
    """Trains on one device, with AdamW and a cosine that ends at zero, and prints the metrics now and then."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(warmup_steps, steps // 2), steps)
    decays = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mask=decays)
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: optax.OptState, pairs: Pairs) -> tuple[Params, optax.OptState, dict]:
        grads, metrics = jax.grad(contrastive_loss, has_aux=True)(params, pairs, config)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    params = jax.tree.map(jnp.array, params)  # a copy: the steps free what they are given
    state = optimizer.init(params)
    with ProgressBar(total=steps, desc="training CLIP", unit="step", dynamic_ncols=True) as bar:
        for i in range(1, steps + 1):
            params, state, metrics = step(params, state, next(batches))
            bar.update()
            if i % log_every == 0 or i == steps:
                values = {name: float(value) for name, value in metrics.items()}
                bar.set_postfix(values)
                ProgressBar.write(f"CLIP, step {i}: loss {values['loss']:.3f}, accuracy {values['accuracy']:.1%}")
    return params
