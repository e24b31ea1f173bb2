"""SAM's image encoder: one of `sam_jax.modeling.encoders`, and a neck that brings its last map to the decoder's width.

Their params lie side by side, in one dict.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.common import Dense, DepthwiseConv, LayerNorm, apply, fan_in_uniform, gelu, repeat_pixels
from sam_jax.modeling.encoders import encoder_of
from sam_jax.modeling.encoders.base import EncoderPart
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


class FineNeck(nn.Module):
    """Makes maps twice and four times as fine as the embedding, which the decoder adds in its up-scaling.

    Each takes the encoder's map of that size and what is coarser, and is packed into the channels of the embedding's
    cells, pixel by pixel as the decoder's up-scaling lays them out. So an image's embedding stays one array.

    Reference: Ravi et al. 2024 (SAM 2), section 4, whose maps are the encoder's alone.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedding: Float[Array, "B h w {self.features}"],
        twice: Float[Array, "B 2*h 2*w _"],
        four: Float[Array, "B 4*h 4*w _"],
    ) -> Float[Array, "B h w 3*{self.features}"]:
        D = self.features
        x = self._refine(embedding, twice, D // 2, "neck_fine_0")
        y = self._refine(x, four, D // 4, "neck_fine_1")
        x = Dense(D // 2, D // 4, self.dtype, name="neck_fine_0_out")(x)
        y = Dense(D // 4, D // 8, self.dtype, name="neck_fine_1_out")(y)
        return jnp.concatenate([pack_pixels(x, 1), pack_pixels(y, 2)], -1)

    def _refine(self, coarse: Array, fine: Array, dim: int, name: str) -> Array:
        x = repeat_pixels(Dense(coarse.shape[-1], dim, self.dtype, name=f"{name}_coarse")(coarse), 2)
        x = x + Dense(fine.shape[-1], dim, self.dtype, name=f"{name}_fine")(fine.astype(self.dtype))
        y = LayerNorm(dtype=self.dtype, name=f"{name}_norm")(DepthwiseConv(3, 1, self.dtype, name=f"{name}_conv")(x))
        return x + gelu(Dense(dim, dim, self.dtype, name=f"{name}_mix")(y))


def pack_pixels(x: Float[Array, "B H W C"], levels: int) -> Float[Array, "B h w D"]:
    """Moves the 4 pixels of each cell into its channels, and so on `levels` times.

    The 4 are in reading order. Twice, the pixels of each of 4 quarters come one after the other.
    """
    B, H, W, C = x.shape
    h, w = H // 2**levels, W // 2**levels
    x = x.reshape(B, h, *[2] * levels, w, *[2] * levels, C)
    pairs = [axis for level in range(levels) for axis in (2 + level, 3 + levels + level)]
    return x.transpose(0, 1, 2 + levels, *pairs, 3 + 2 * levels).reshape(B, h, w, -1)


def is_neck(name: str) -> bool:
    """Says whether a param below "image_encoder", or the module that it is in, is the neck's."""
    return name.startswith("neck_")


def neck_flops(config: SamConfig) -> float:
    """Returns the floating point operations of the neck's forward pass on one image, without those of finer maps."""
    D = config.prompt_dim
    return 2.0 * config.grid_size**2 * (config.encoder.features * D + 9 * D**2)


def neck_maps(
    params: Params, maps: Mapping[str, Float[Array, "B _ _ _"]], config: SamConfig, dtype: DTypeLike
) -> Float[Array, "B h w E"]:
    """Returns the image embedding, given the params of the image encoder and the maps of its trunk."""
    embedding = apply(Neck(config.prompt_dim, dtype), params, maps["last"])
    if not config.high_res_features:
        return embedding
    finer = apply(FineNeck(config.prompt_dim, dtype), params, embedding, *(maps[name] for name in finer_maps(config)))
    return jnp.concatenate([embedding, finer], -1)


def finish_maps(
    params: Params,
    maps: Mapping[str, Float[AnyArray, "B _ _ _"]],
    config: SamConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    drop_path: float = 0.0,
    remat: bool = False,
    key: Key[Array, ""] | None = None,
) -> Float[AnyArray, "B h w E"]:
    """Returns the image embedding from the maps of a `frozen_part`. The other arguments are those of `encode_maps`."""
    if EMBEDDING in maps:
        return maps[EMBEDDING]
    encoder, own = encoder_of(config.encoder), params["image_encoder"]
    if "last" not in maps:
        options: dict[str, Any] = {"dtype": dtype, "drop_path": drop_path, "remat": remat, "key": key}
        maps = encoder.finish(own, maps, config.encoder, **options)
    return neck_maps(own, maps, config, dtype)


def frozen_part(config: SamConfig, trained: Iterable[str]) -> EncoderPart:
    """Returns the largest part of the image encoder that comes before all params that learn.

    Args:
        trained: names of the params that learn, below "image_encoder".

    Raises:
        UserError: params learn in the first part of the trunk already; names one of them.
    """
    learning = sorted(trained)
    if not learning:
        return EncoderPart(r"", (EMBEDDING,))
    finer = finer_maps(config) if config.high_res_features else ()
    if all(map(is_neck, learning)):
        return EncoderPart(r"^(?!neck_)", ("last", *finer))
    first = encoder_of(config.encoder).first_part or EncoderPart(r"^(?!neck_)", ())
    if early := list(filter(first.has, learning)):
        raise UserError(
            f"expected a frozen first part of the {config.encoder.kind} encoder (params {first.params!r} below "
            f"image_encoder/), finetune.trainable has {len(early)} of its params, such as image_encoder/{early[0]}"
        )
    return EncoderPart(first.params, tuple(dict.fromkeys((*first.maps, *finer))))


def finer_maps(config: SamConfig) -> tuple[str, str]:
    """Returns the names of the encoder's maps that are twice and four times as fine as its last one."""
    return f"stride_{config.encoder.stride // 2}", f"stride_{config.encoder.stride // 4}"


def init_image_encoder(config: SamConfig, key: Key[Array, ""]) -> Params:
    """Returns random float32 params of trunk and neck."""
    encoder = encoder_of(config.encoder)
    trunk = encoder.init(config.encoder, key)
    last = jnp.zeros((1, config.grid_size, config.grid_size, config.encoder.features))
    neck = Neck(config.prompt_dim).init(key, last)["params"]
    if config.high_res_features:
        images = jnp.zeros((1, config.image_size, config.image_size, 3))
        maps = jax.eval_shape(lambda: encoder.apply(trunk, images, config.encoder))
        if missing := [name for name in finer_maps(config) if name not in maps]:
            raise UserError(
                f"expected an encoder with maps {missing} for high_res_features, {config.encoder.kind} has {list(maps)}"
            )
        finer = [jnp.zeros(maps[name].shape) for name in finer_maps(config)]
        embedding = jnp.zeros((*last.shape[:-1], config.prompt_dim))
        neck |= FineNeck(config.prompt_dim).init(jax.random.fold_in(key, 1), embedding, *finer)["params"]
    return {**trunk, **neck}


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
        maps[EMBEDDING] = neck_maps(own, maps, config, dtype)
    return {name: maps[name] for name in names}


@functools.lru_cache(maxsize=16)  # tracing an encoder takes up to a second
def map_shapes(config: SamConfig) -> Mapping[str, tuple[int, int, int]]:
    """Returns (h, w, channels) of every map that the image encoder can give, by name."""
    side = config.image_size

    def all_maps(key: Key[Array, ""]) -> dict[str, Array]:
        params = init_image_encoder(config, key)
        images = jnp.zeros((1, side, side, 3))
        maps = encoder_of(config.encoder).apply(params, images, config.encoder)
        return maps | {EMBEDDING: neck_maps(params, maps, config, jnp.float32)}

    return {name: leaf.shape[1:] for name, leaf in jax.eval_shape(all_maps, jax.random.key(0)).items()}
