"""Self-attention over a grid of tokens with decomposed relative positions, and ways to compute it.

Reference: Li et al. 2021 (MViTv2), section 4.1.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sam_jax.modeling.common import Dense, einsum_float32

CPU_ATTENTION_ELEMENTS = 2**20  # logits that a CPU core's cache holds: what global attention computes there at a time


def relative_biases(
    q: Float[Array, "B N heads d"],
    rel_pos_h: Float[Array, "2*{size[0]}-1 d"],
    rel_pos_w: Float[Array, "2*{size[1]}-1 d"],
    size: tuple[int, int],
) -> tuple[Float[Array, "B N heads {size[0]}"], Float[Array, "B N heads {size[1]}"]]:
    """Returns q_i . R_h[row_i - row_j] for each key row and q_i . R_w[col_i - col_j] for each key column.

    Args:
        q: not scaled, N = h * w.
        size: (h, w).
    """
    (h, w), (B, _, heads, d) = size, q.shape

    def table(rel_pos: Array, side: int) -> Array:  # (query, key, d)
        return rel_pos.astype(q.dtype)[jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1]

    q_grid = q.reshape(B, h, w, heads, d)
    bias_h = jnp.einsum("bhwnd,hkd->bhwnk", q_grid, table(rel_pos_h, h)).reshape(B, h * w, heads, h)
    bias_w = jnp.einsum("bhwnd,wkd->bhwnk", q_grid, table(rel_pos_w, w)).reshape(B, h * w, heads, w)
    return bias_h, bias_w


def fold_relative_positions(
    q: Float[Array, "B N heads d"],
    k: Float[Array, "B N heads d"],
    rel_pos_h: Float[Array, "2*{size[0]}-1 d"],
    rel_pos_w: Float[Array, "2*{size[1]}-1 d"],
    size: tuple[int, int],
) -> tuple[Float[Array, "B N heads d+{sum(size)}"], Float[Array, "B N heads d+{sum(size)}"]]:
    """Moves the decomposed relative position bias into the query-key product.

    logits[i, j] = q_i . k_j / sqrt(d) + q_i . R_h[row_i - row_j] + q_i . R_w[col_i - col_j]. For a query the two biases
    take one value per key row and one per key column, so they are appended to q, and one-hot row and column
    indicators to k: a plain dot-product attention of width d + h + w computes the same, with any fused kernel.

    Args:
        q, k: N = h * w.
        size: (h, w).

    Returns:
        q, already scaled, and k.
    """
    (h, w), (B, _, heads, d) = size, q.shape
    row_of, col_of = jnp.divmod(jnp.arange(h * w), w)
    indicators = jnp.concatenate([jax.nn.one_hot(row_of, h), jax.nn.one_hot(col_of, w)], -1).astype(k.dtype)
    indicators = jnp.broadcast_to(indicators[:, None], (B, h * w, heads, h + w))
    biases = relative_biases(q, rel_pos_h, rel_pos_w, size)
    return jnp.concatenate([q * d**-0.5, *biases], -1), jnp.concatenate([k, indicators], -1)


def attend(
    q: Float[Array, "B N heads c"], k: Float[Array, "B M heads c"], v: Float[Array, "B M heads d"]
) -> Float[Array, "B N heads d"]:
    """Computes softmax(q k^T) v, for a q that is already scaled, with the softmax in float32."""
    logits = einsum_float32("bqnd,bknd->bnqk", q, k)
    # The division moves behind the product with v: N x d numbers in place of N x N.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1)
    out = einsum_float32("bnqk,bknd->bqnd", weights.astype(v.dtype), v)
    return (out / total.swapaxes(1, 2)[..., None]).astype(v.dtype)


def attend_in_cache(
    q: Float[Array, "B N heads d"],
    k: Float[Array, "B N heads d"],
    v: Float[Array, "B N heads d"],
    rel_pos_h: Float[Array, "2*{size[0]}-1 d"],
    rel_pos_w: Float[Array, "2*{size[1]}-1 d"],
    size: tuple[int, int],
    elements: int,
) -> Float[Array, "B N heads d"]:
    """Computes the same attention one head and a few rows of queries at a time, at most `elements` logits or one row.

    This serves processors without a fused kernel: the logits stay in the cache, and the biases are added to them there,
    for less than the wider product costs. The arguments are those of `fold_relative_positions`.
    """
    (h, w), (B, N, heads, d) = size, q.shape
    rows = max(rows for rows in range(1, h + 1) if h % rows == 0 and (rows == 1 or rows * w * N <= elements))

    def by_head(x: Array) -> Array:  # (B * heads, N, ...)
        return x.swapaxes(1, 2).reshape(B * heads, N, -1).astype(jnp.float32)

    def by_rows(x: Array) -> Array:  # (B * heads, chunks, queries, ...)
        return by_head(x).reshape(B * heads, h // rows, rows * w, -1)

    bias_h, bias_w = relative_biases(q, rel_pos_h, rel_pos_w, size)

    def attend_head(head: tuple[Array, ...]) -> Array:
        *queries, k, v = head

        def attend_rows(chunk: list[Array]) -> Array:
            q, bias_h, bias_w = chunk
            bias = bias_h[:, :, None] + bias_w[:, None, :]
            logits = q @ k.T + bias.reshape(rows * w, N)
            weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
            return (weights @ v) / weights.sum(-1, keepdims=True)

        return jax.lax.map(attend_rows, queries)

    heads_of = (by_rows(q * d**-0.5), by_rows(bias_h), by_rows(bias_w), by_head(k), by_head(v))
    out = jax.lax.map(attend_head, heads_of)
    return out.reshape(B, heads, N, d).swapaxes(1, 2).astype(v.dtype)


class GridAttention(nn.Module):
    """Multi-head self-attention over a grid, with decomposed relative positions."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        B, h, w, D = x.shape
        d = D // self.heads
        qkv = Dense(D, 3 * D, self.dtype, name="qkv")(x).reshape(B, h * w, 3, self.heads, d)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        rel_pos_h = self.param("rel_pos_h", nn.initializers.zeros, (2 * h - 1, d))
        rel_pos_w = self.param("rel_pos_w", nn.initializers.zeros, (2 * w - 1, d))
        inputs = (q, k, v, rel_pos_h, rel_pos_w)

        def folded(q: Array, k: Array, v: Array, rel_pos_h: Array, rel_pos_w: Array) -> Array:
            return attend(*fold_relative_positions(q, k, rel_pos_h, rel_pos_w, (h, w)), v)

        if (h * w) ** 2 <= CPU_ATTENTION_ELEMENTS:
            out = folded(*inputs)
        else:
            in_cache = functools.partial(attend_in_cache, size=(h, w), elements=CPU_ATTENTION_ELEMENTS)
            out = jax.lax.platform_dependent(*inputs, cpu=in_cache, default=folded)
        return Dense(D, D, self.dtype, name="proj")(out.reshape(B, h, w, D))
