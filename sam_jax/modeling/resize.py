"""Params of one input size -> params of another, so that a model trained on small images goes on with larger ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of
from sam_jax.types import Params


def resize_positions(params: Params, old: SamConfig, new: SamConfig) -> Params:
    """Adapts what depends on the size of the input frame: the encoder's positions, and the prompts' Fourier matrix.

    The Fourier matrix is scaled with the image, so that an offset of one pixel keeps its phase.

    Raises:
        UserError: the models differ in more than `image_size` (and name).
    """
    resized = dataclasses.replace(old, name=new.name).with_image_size(new.image_size)
    if resized != new:
        raise UserError(f"expected models that differ in image_size only, these differ in {_differences(resized, new)}")
    if old.image_size == new.image_size:
        return params
    encoder = encoder_of(new.encoder).resize(params["image_encoder"], old.encoder, new.encoder)
    prompt = dict(params["prompt_encoder"])
    factor = new.image_size / old.image_size
    prompt["pe_layer"] = jax.tree.map(lambda matrix: jnp.asarray(matrix) * factor, prompt["pe_layer"])
    return params | {"image_encoder": encoder, "prompt_encoder": prompt}


def _differences(old: SamConfig, new: SamConfig) -> list[str]:
    """Names of the fields that differ, those of the encoder as `encoder.depth`."""

    def differing(a: object, b: object) -> list[str]:
        names = [field.name for field in dataclasses.fields(b)]  # type: ignore[arg-type]
        return [name for name in names if getattr(a, name, None) != getattr(b, name)]

    own = [name for name in differing(old, new) if name != "encoder"]
    return [*(f"encoder.{name}" for name in differing(old.encoder, new.encoder)), *own]
