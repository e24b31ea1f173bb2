"""Params of one input size -> params of another, so that a model trained on small images goes on with larger ones."""

from __future__ import annotations

import dataclasses

from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of
from sam_jax.types import Params


def resize_positions(params: Params, old: SamConfig, new: SamConfig) -> Params:
    """Adapts what depends on the size of the input frame: the encoder's positions.

    The positions of prompts are fractions of the frame, and stay what they are.

    Raises:
        UserError: the models differ in more than `image_size` (and name).
    """
    resized = dataclasses.replace(old, name=new.name).with_image_size(new.image_size)
    if resized != new:
        raise UserError(f"expected models that differ in image_size only, these differ in {_differences(resized, new)}")
    if old.image_size == new.image_size:
        return params
    encoder = encoder_of(new.encoder).resize(params["image_encoder"], old.encoder, new.encoder)
    return params | {"image_encoder": encoder}


def _differences(old: SamConfig, new: SamConfig) -> list[str]:
    """Names of the fields that differ, those of the encoder as `encoder.depth`."""

    def differing(a: object, b: object) -> list[str]:
        names = [field.name for field in dataclasses.fields(b)]  # type: ignore[arg-type]
        return [name for name in names if getattr(a, name, None) != getattr(b, name)]

    own = [name for name in differing(old, new) if name != "encoder"]
    return [*(f"encoder.{name}" for name in differing(old.encoder, new.encoder)), *own]
