"""SAM's image encoder: one of `sam_jax.modeling.encoders`, and a neck that brings its last map to the decoder's width.

Their params lie side by side, in one dict.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.common import LayerNorm, apply, fan_in_uniform
from sam_jax.modeling.encoders import encoder_of
from sam_jax.types import AnyArray, Params

EMBEDDING = "embedding"  # the neck's map, beside those of the trunk


class Neck(nn.Module):
    """Turns a map (B, h, w, C) into (B, h, w, features) by two convolutions, 1 x 1 and 3 x 3, each with a norm."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w {self.features}"]:
        x = self._convolve(x, 1, "neck_0")
        x = LayerNorm(dtype=self.dtype, name="neck_1")(x)
        x = self._convolve(x, 3, "neck_2")
        return LayerNorm(dtype=self.dtype, name="neck_3")(x)

    def _convolve(self, x: Float[Array, "B h w C"], size: int, name: str) -> Float[Array, "B h w D"]:
        init = fan_in_uniform(size * size * x.shape[-1])
        return nn.Conv(self.features, (size, size), use_bias=False, dtype=self.dtype, kernel_init=init, name=name)(x)


def is_neck(name: str) -> bool:
    """Says whether a param below "image_encoder", or the module that it is in, is the neck's."""
    return name.startswith("neck_")


def neck_flops(config: SamConfig) -> float:
    """Returns the floating point operations of the neck's forward pass on one image."""
    D = config.prompt_dim
    return 2.0 * config.grid_size**2 * (config.encoder.features * D + 9 * D**2)


def init_image_encoder(config: SamConfig, key: Key[Array, ""]) -> Params:
    """Returns random float32 params of trunk and neck."""
    trunk = encoder_of(config.encoder).init(config.encoder, key)
    last = jnp.zeros((1, config.grid_size, config.grid_size, config.encoder.features))
    return {**trunk, **Neck(config.prompt_dim).init(key, last)["params"]}


def encode_maps(
    params: Params,
    images: Float[AnyArray, "B S S 3"],
    config: SamConfig,
    names: Sequence[str] = (EMBEDDING,),
    *,
    dtype: DTypeLike = jnp.float32,
    drop_path: float = 0.0,
    remat: bool = False,
    key: Key[Array, ""] | None = None,
) -> dict[str, Float[Array, "B h w C"]]:
    """Encodes normalised images and returns the maps that are asked for, by name, in `dtype`.

    Args:
        params: the whole model's params.
        images: from `normalize_images`, S = config.image_size.
        names: of the maps that are wanted: "embedding", which the mask decoder takes, and those that the encoder has
            in passing, as `map_shapes` lists them. Compiled, nothing is computed for others alone.
        drop_path: rate of the last block; takes effect only with a `key`, that is in training.
        remat: recompute blocks in the backward pass, to save memory.
        key: random key of the drop path.

    Raises:
        UserError: images of another size, or maps that this encoder does not have.
    """
    encoder, own = encoder_of(config.encoder), params["image_encoder"]
    maps = encoder.apply(own, images, config.encoder, dtype=dtype, drop_path=drop_path, remat=remat, key=key)
    if unknown := sorted(set(names) - maps.keys() - {EMBEDDING}):
        raise UserError(
            f"expected maps that the {config.encoder.kind} encoder of model {config.name!r} has "
            f"({', '.join([EMBEDDING, *maps])}), got {unknown}"
        )
    if EMBEDDING in names:
        maps[EMBEDDING] = apply(Neck(config.prompt_dim, dtype), own, maps["last"])
    return {name: maps[name] for name in names}


@functools.lru_cache(maxsize=16)  # tracing an encoder takes up to a second
def map_shapes(config: SamConfig) -> Mapping[str, tuple[int, int, int]]:
    """Returns (h, w, channels) of every map that the image encoder can give, by name."""
    side = config.image_size

    def all_maps(key: Key[Array, ""]) -> dict[str, Array]:
        params = init_image_encoder(config, key)
        images = jnp.zeros((1, side, side, 3))
        maps = encoder_of(config.encoder).apply(params, images, config.encoder)
        return maps | {EMBEDDING: apply(Neck(config.prompt_dim), params, maps["last"])}

    return {name: leaf.shape[1:] for name, leaf in jax.eval_shape(all_maps, jax.random.key(0)).items()}
