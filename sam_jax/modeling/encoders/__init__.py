"""The image encoders, one file each. Another one is one more file, and one more entry in `ENCODERS`."""

from __future__ import annotations

from typing import Any

from sam_jax.config import EncoderConfig, SamConfig
from sam_jax.modeling.encoders import efficientnet_lite, tiny_vit, vit
from sam_jax.modeling.encoders.base import Encoder

ENCODERS: tuple[Encoder[Any], ...] = (vit.ENCODER, tiny_vit.ENCODER, efficientnet_lite.ENCODER)


def encoder_of(config: EncoderConfig) -> Encoder[Any]:
    """Returns the encoder that a config belongs to.

    Raises:
        TypeError: it belongs to none of `ENCODERS`.
    """
    for encoder in ENCODERS:
        if type(config) is encoder.config:
            return encoder
    known = " or ".join(encoder.config.__name__ for encoder in ENCODERS)
    raise TypeError(f"expected the config of an image encoder ({known}), got a {type(config).__name__}")


def known_sizes() -> dict[str, SamConfig]:
    """Returns the models that have a name, of all encoders."""
    return {name: config for encoder in ENCODERS for name, config in encoder.sizes.items()}
