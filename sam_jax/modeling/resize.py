"""Params of one input size -> params of another, so that a model trained on small images goes on with larger ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.types import Params


def resize_positions(params: Params, old: SamConfig, new: SamConfig) -> Params:
    """Interpolates what depends on the grid: position embedding, relative positions of the global blocks.

    The Fourier matrix is scaled with the image, so that an offset of one pixel keeps its phase.

    Raises:
        ValueError: the models differ in more than `image_size` (and name).
    """
    if dataclasses.replace(old, name=new.name, image_size=new.image_size) != new:
        differing = [f.name for f in dataclasses.fields(new) if getattr(old, f.name) != getattr(new, f.name)]
        raise UserError(f"expected models that differ in image_size only, these differ in {differing}")
    if old.image_size == new.image_size:
        return params
    encoder = dict(params["image_encoder"])
    grid, D = new.grid_size, new.encoder_dim
    encoder["pos_embed"] = jax.image.resize(encoder["pos_embed"], (1, grid, grid, D), "bicubic", antialias=False)
    for i in new.global_attention_blocks:
        block = dict(encoder[f"blocks_{i}"])
        attention = dict(block["attn"])
        for name in ("rel_pos_h", "rel_pos_w"):
            table = attention[name]
            attention[name] = jax.image.resize(table, (2 * grid - 1, table.shape[1]), "linear", antialias=False)
        encoder[f"blocks_{i}"] = block | {"attn": attention}
    prompt = dict(params["prompt_encoder"])
    factor = new.image_size / old.image_size
    prompt["pe_layer"] = jax.tree.map(lambda matrix: jnp.asarray(matrix) * factor, prompt["pe_layer"])
    return params | {"image_encoder": encoder, "prompt_encoder": prompt}
