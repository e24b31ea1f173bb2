"""The plain ViT image encoder: windowed and global attention, decomposed relative positions, convolutional neck."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.config import SamConfig
from sam_jax.modeling.common import (
    Dense,
    DropPath,
    LayerNorm,
    MlpBlock,
    PatchConv,
    einsum_float32,
    fan_in_uniform,
    gelu,
)

CPU_ATTENTION_ELEMENTS = 2**20  # logits that a CPU core's cache holds: what global attention computes there at a time


def partition_windows(x: jax.Array, window: int) -> jax.Array:
    """Cuts (B, h, w, D) into (B * windows, window, window, D), zero-padding the right and the bottom."""
    B, h, w, D = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, cols = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(B, rows, window, cols, window, D).swapaxes(2, 3)
    return x.reshape(B * rows * cols, window, window, D)


def merge_windows(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Undoes `partition_windows` for images of `size` = (h, w) patches; the padding is cut off."""
    (h, w), window, D = size, x.shape[1], x.shape[-1]
    rows, cols = -(-h // window), -(-w // window)
    x = x.reshape(-1, rows, cols, window, window, D).swapaxes(2, 3)
    return x.reshape(-1, rows * window, cols * window, D)[:, :h, :w]


def relative_biases(
    q: jax.Array, rel_pos_h: jax.Array, rel_pos_w: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """q_i . R_h[row_i - row_j] for each key row and q_i . R_w[col_i - col_j] for each key column.

    Args:
        q: (B, h * w, heads, d), not scaled.
        rel_pos_h, rel_pos_w: (2 h - 1, d), (2 w - 1, d).
        size: (h, w).

    Returns:
        (B, h * w, heads, h) and (B, h * w, heads, w).
    """
    (h, w), (B, _, heads, d) = size, q.shape

    def table(rel_pos: jax.Array, side: int) -> jax.Array:  # (query, key, d)
        return rel_pos.astype(q.dtype)[jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1]

    q_grid = q.reshape(B, h, w, heads, d)
    bias_h = jnp.einsum("bhwnd,hkd->bhwnk", q_grid, table(rel_pos_h, h)).reshape(B, h * w, heads, h)
    bias_w = jnp.einsum("bhwnd,wkd->bhwnk", q_grid, table(rel_pos_w, w)).reshape(B, h * w, heads, w)
    return bias_h, bias_w


def fold_relative_positions(
    q: jax.Array, k: jax.Array, rel_pos_h: jax.Array, rel_pos_w: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Moves the decomposed relative position bias into the query-key product.

    logits[i, j] = q_i . k_j / sqrt(d) + q_i . R_h[row_i - row_j] + q_i . R_w[col_i - col_j]. For a query the two biases
    take one value per key row and one per key column, so they are appended to q, and one-hot row and column
    indicators to k: a plain dot-product attention of width d + h + w computes the same, with any fused kernel.

    Args:
        q, k: (B, h * w, heads, d).
        rel_pos_h, rel_pos_w: (2 h - 1, d), (2 w - 1, d).
        size: (h, w).

    Returns:
        q, already scaled, and k, both (B, h * w, heads, d + h + w).
    """
    (h, w), (B, _, heads, d) = size, q.shape
    row_of, col_of = jnp.divmod(jnp.arange(h * w), w)
    indicators = jnp.concatenate([jax.nn.one_hot(row_of, h), jax.nn.one_hot(col_of, w)], -1).astype(k.dtype)
    indicators = jnp.broadcast_to(indicators[:, None], (B, h * w, heads, h + w))
    biases = relative_biases(q, rel_pos_h, rel_pos_w, size)
    return jnp.concatenate([q * d**-0.5, *biases], -1), jnp.concatenate([k, indicators], -1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v with the softmax in float32; (B, N, heads, ...) in and out, q already scaled."""
    logits = einsum_float32("bqnd,bknd->bnqk", q, k)
    # The division moves behind the product with v: N x d numbers in place of N x N.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1)
    out = einsum_float32("bnqk,bknd->bqnd", weights.astype(v.dtype), v)
    return (out / total.swapaxes(1, 2)[..., None]).astype(v.dtype)


def attend_in_cache(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rel_pos_h: jax.Array,
    rel_pos_w: jax.Array,
    size: tuple[int, int],
    elements: int,
) -> jax.Array:
    """The same attention one head and a few rows of queries at a time, at most `elements` logits (or one row).

    For processors without a fused kernel: the logits stay in the cache, and the biases are added to them there, for
    less than the wider product costs. Arguments as `fold_relative_positions`; (B, h * w, heads, d) out.
    """
    (h, w), (B, N, heads, d) = size, q.shape
    rows = max(rows for rows in range(1, h + 1) if h % rows == 0 and (rows == 1 or rows * w * N <= elements))

    def by_head(x: jax.Array) -> jax.Array:  # (B * heads, N, ...)
        return x.swapaxes(1, 2).reshape(B * heads, N, -1).astype(jnp.float32)

    def by_rows(x: jax.Array) -> jax.Array:  # (B * heads, chunks, queries, ...)
        return by_head(x).reshape(B * heads, h // rows, rows * w, -1)

    bias_h, bias_w = relative_biases(q, rel_pos_h, rel_pos_w, size)

    def attend_head(head: tuple[jax.Array, ...]) -> jax.Array:
        *queries, k, v = head

        def attend_rows(chunk: list[jax.Array]) -> jax.Array:
            q, bias_h, bias_w = chunk
            bias = bias_h[:, :, None] + bias_w[:, None, :]
            logits = q @ k.T + bias.reshape(rows * w, N)
            weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
            return (weights @ v) / weights.sum(-1, keepdims=True)

        return jax.lax.map(attend_rows, queries)

    heads_of = (by_rows(q * d**-0.5), by_rows(bias_h), by_rows(bias_w), by_head(k), by_head(v))
    out = jax.lax.map(attend_head, heads_of)
    return out.reshape(B, heads, N, d).swapaxes(1, 2).astype(v.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over a grid, with decomposed relative positions."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, h, w, D = x.shape
        d = D // self.heads
        qkv = Dense(D, 3 * D, self.dtype, name="qkv")(x).reshape(B, h * w, 3, self.heads, d)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        rel_pos_h = self.param("rel_pos_h", nn.initializers.zeros, (2 * h - 1, d))
        rel_pos_w = self.param("rel_pos_w", nn.initializers.zeros, (2 * w - 1, d))
        inputs = (q, k, v, rel_pos_h, rel_pos_w)

        def folded(q: jax.Array, k: jax.Array, v: jax.Array, rel_pos_h: jax.Array, rel_pos_w: jax.Array) -> jax.Array:
            return attend(*fold_relative_positions(q, k, rel_pos_h, rel_pos_w, (h, w)), v)

        if (h * w) ** 2 <= CPU_ATTENTION_ELEMENTS:
            out = folded(*inputs)
        else:
            in_cache = functools.partial(attend_in_cache, size=(h, w), elements=CPU_ATTENTION_ELEMENTS)
            out = jax.lax.platform_dependent(*inputs, cpu=in_cache, default=folded)
        return Dense(D, D, self.dtype, name="proj")(out.reshape(B, h, w, D))


class Block(nn.Module):
    """Pre-norm transformer block. `window` 0 means global attention."""

    heads: int
    mlp_dim: int
    window: int
    drop_path: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = Attention(self.heads, self.dtype, name="attn")
        if self.window:
            # The zero padding takes part as keys and values, as in the official model; masking it changes the result.
            y = merge_windows(attention(partition_windows(y, self.window)), (x.shape[1], x.shape[2]))
        else:
            y = attention(y)
        drop = DropPath(self.drop_path)
        x = x + drop(y, deterministic)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = MlpBlock(x.shape[-1], self.mlp_dim, gelu, self.dtype, name="mlp")(y)
        return x + drop(y, deterministic)


class PlainViT(nn.Module):
    """Normalised images (B, S, S, 3) in the input frame -> what the last block makes of each patch (B, h, w, D)."""

    config: SamConfig
    dtype: jnp.dtype = jnp.float32
    drop_path: float = 0.0  # rate of the last block; grows linearly from 0 at the first
    remat: bool = False  # recompute each block in the backward pass

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        return self._transform(images, deterministic)

    def _transform(self, images: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        x = PatchConv(3, c.encoder_dim, c.patch_size, self.dtype, name="patch_embed_proj")(images)
        shape = (1, c.grid_size, c.grid_size, c.encoder_dim)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), shape).astype(self.dtype)
        block_class = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(c.encoder_depth):
            x = block_class(
                heads=c.encoder_heads,
                mlp_dim=int(c.encoder_dim * c.encoder_mlp_ratio),
                window=0 if i in c.global_attention_blocks else c.window_size,
                drop_path=self.drop_path * i / max(c.encoder_depth - 1, 1),
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x, deterministic)
        return x


class ImageEncoder(PlainViT):
    """Normalised images (B, S, S, 3) in the input frame -> embedding (B, h, w, prompt_dim): blocks and a neck."""

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        c = self.config
        x = self._transform(images, deterministic)
        x = self._convolve(x, c.prompt_dim, 1, "neck_0")
        x = LayerNorm(dtype=self.dtype, name="neck_1")(x)
        x = self._convolve(x, c.prompt_dim, 3, "neck_2")
        return LayerNorm(dtype=self.dtype, name="neck_3")(x)

    def _convolve(self, x: jax.Array, features: int, size: int, name: str) -> jax.Array:
        init = fan_in_uniform(size * size * x.shape[-1])
        return nn.Conv(features, (size, size), use_bias=False, dtype=self.dtype, kernel_init=init, name=name)(x)
