"""CLIP: an image tower and a text tower whose embeddings share a space, as pure functions.

Names are the official ones, with the text tower's in `text`.

Reference: Radford et al. 2021. The object mask of the image tower: Kirillov et al. 2023, section D.5.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.clip.config import ClipConfig
from sam_jax.modeling.common import Dense, LayerNorm, PatchConv, einsum_float32
from sam_jax.types import AnyArray, Params

EPSILON = 1e-5  # of all norms
FIRST_LOGIT_SCALE = math.log(1 / 0.07)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the sigmoid approximation that CLIP was trained with; up to 0.02 from the exact GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


class ClipAttention(nn.Module):
    """Multi-head self-attention. `queries` limits it to the first positions; only their outputs are computed."""

    dim: int
    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], allowed: Bool[Array, "..."] | None, queries: int | None
    ) -> Float[Array, "B _ D"]:
        kernel, bias = Dense(self.dim, 3 * self.dim, self.dtype, name="in_proj").weights()
        D, B = self.dim, len(x)

        def project(x: Array, part: slice) -> Array:
            y = x @ kernel[:, part] + bias[part]
            return y.reshape(B, -1, self.heads, D // self.heads)

        q = project(x[:, :queries], slice(D)) * (D // self.heads) ** -0.5
        k, v = project(x, slice(D, 2 * D)), project(x, slice(2 * D, None))
        logits = einsum_float32("bqnd,bknd->bnqk", q, k)
        if allowed is not None:
            logits = jnp.where(allowed, logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        out = einsum_float32("bnqk,bknd->bqnd", weights, v).astype(self.dtype)
        return Dense(D, D, self.dtype, name="out_proj")(out.reshape(B, -1, D))


class ClipMlp(nn.Module):
    """Applies the two-layer feed-forward network of a block."""

    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N {self.dim}"]) -> Float[Array, "B N {self.dim}"]:
        x = quick_gelu(Dense(self.dim, 4 * self.dim, self.dtype, name="c_fc")(x))
        return Dense(4 * self.dim, self.dim, self.dtype, name="c_proj")(x)


class ClipBlock(nn.Module):
    """A pre-norm transformer block."""

    dim: int
    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], allowed: Bool[Array, "..."] | None = None, queries: int | None = None
    ) -> Float[Array, "B _ D"]:
        attention = ClipAttention(self.dim, self.heads, self.dtype, name="attn")
        y = attention(LayerNorm(EPSILON, self.dtype, name="ln_1")(x), allowed, queries)
        x = x[:, :queries] + y
        return x + ClipMlp(self.dim, self.dtype, name="mlp")(LayerNorm(EPSILON, self.dtype, name="ln_2")(x))


class ClipTransformer(nn.Module):
    """Blocks of which the last may have a mask of its own and give only the first positions."""

    dim: int
    depth: int
    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        allowed: Bool[Array, "..."] | None = None,
        last_allowed: Bool[Array, "..."] | None = None,
        queries: int | None = None,
    ) -> Float[Array, "B _ D"]:
        for i in range(self.depth):
            block = ClipBlock(self.dim, self.heads, self.dtype, name=f"resblocks_{i}")
            x = block(x, last_allowed, queries) if i == self.depth - 1 else block(x, allowed)
        return x


class ImageTower(nn.Module):
    """Embeds normalised images."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[AnyArray, "n S S 3"], object_patches: Bool[AnyArray, "n g g"] | None = None
    ) -> Float[Array, "n {self.config.embedding_dim}"]:
        c, D = self.config, self.config.vision_dim
        normal = nn.initializers.normal(D**-0.5)
        x = PatchConv(3, D, c.patch_size, self.dtype, use_bias=False, name="conv1")(images)
        output_token = self.param("class_embedding", normal, (D,)).astype(self.dtype)
        x = jnp.concatenate(
            [jnp.broadcast_to(output_token, (len(x), 1, D)), x.reshape(len(x), c.grid_size**2, D)], axis=1
        )
        x += self.param("positional_embedding", normal, (1 + c.grid_size**2, D)).astype(self.dtype)
        x = LayerNorm(EPSILON, self.dtype, name="ln_pre")(x)
        allowed = None
        if object_patches is not None:
            # Decision: the output token goes on seeing itself, so that a mask of everything is CLIP as it is.
            seen = object_patches.reshape(len(x), 1, 1, c.grid_size**2)
            allowed = jnp.concatenate([jnp.ones((len(x), 1, 1, 1), bool), seen], -1)
        transformer = ClipTransformer(D, c.vision_depth, c.vision_heads, self.dtype, name="transformer")
        x = transformer(x, last_allowed=allowed, queries=1)
        x = LayerNorm(EPSILON, self.dtype, name="ln_post")(x[:, 0])
        return x @ self.param("proj", normal, (D, c.embedding_dim)).astype(self.dtype)


class TextTower(nn.Module):
    """Embeds the tokens of texts."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "n N"]) -> Float[Array, "n {self.config.embedding_dim}"]:
        c, D, N = self.config, self.config.text_dim, self.config.text_length
        table = self.param("token_embedding", nn.initializers.normal(0.02), (c.vocabulary, D))
        positions = self.param("positional_embedding", nn.initializers.normal(0.01), (N, D))
        x = (table[tokens] + positions[: tokens.shape[1]]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        transformer = ClipTransformer(D, c.text_depth, c.text_heads, self.dtype, name="transformer")
        x = LayerNorm(EPSILON, self.dtype, name="ln_final")(transformer(x, causal, causal))
        # The token that ends a text has the highest number of all.
        x = jnp.take_along_axis(x, tokens.argmax(-1)[:, None, None], 1)[:, 0]
        return x @ self.param("text_projection", nn.initializers.normal(D**-0.5), (D, c.embedding_dim)).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=0)
def init_clip_params(config: ClipConfig, key: Key[Array, ""]) -> Params:
    """Returns random float32 params: {"visual", "text", "logit_scale"}."""
    image_key, text_key = jax.random.split(key)
    side = config.image_size
    return {
        "visual": ImageTower(config).init(
            image_key, jnp.zeros((1, side, side, 3)), jnp.ones((1,) + (config.grid_size,) * 2, bool)
        )["params"],
        "text": TextTower(config).init(text_key, jnp.zeros((1, config.text_length), jnp.int32))["params"],
        "logit_scale": jnp.float32(FIRST_LOGIT_SCALE),
    }


def embed_images(
    params: Params,
    images: Float[AnyArray, "n S S 3"],
    config: ClipConfig,
    object_patches: Bool[AnyArray, "n g g"] | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "n {config.embedding_dim}"]:
    """Embeds images; embeddings have length 1.

    Args:
        params: of the image tower at least, under "visual".
        images: normalised RGB, S = config.image_size; see `sam_jax.clip.crops`.
        object_patches: where the object is. In the last layer the output token attends to these patches and to itself.
    """
    if images.shape[1:] != (config.image_size, config.image_size, 3):
        raise ValueError(
            f"expected images of shape (n, {config.image_size}, {config.image_size}, 3) for CLIP {config.name!r}, "
            f"got {images.shape}"
        )
    tower = ImageTower(config, dtype)
    return _unit(tower.apply({"params": params["visual"]}, images, object_patches))


def embed_tokens(
    params: Params, tokens: Int[AnyArray, "n N"], config: ClipConfig, *, dtype: DTypeLike = jnp.float32
) -> Float[Array, "n {config.embedding_dim}"]:
    """Embeds texts; embeddings have length 1.

    Args:
        params: of the text tower at least, under "text".
        tokens: of whole texts, padded at their ends with anything smaller than the token that ends a text, or with
            that; see `sam_jax.clip.tokenizer`.
    """
    if tokens.shape[1] > config.text_length:
        raise ValueError(
            f"expected at most {config.text_length} tokens for CLIP {config.name!r}, got {tokens.shape[1]}"
        )
    return _unit(TextTower(config, dtype).apply({"params": params["text"]}, tokens))


def _unit(embeddings: Any) -> Array:
    embeddings = embeddings.astype(jnp.float32)
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
