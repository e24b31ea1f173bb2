"""The two-way transformer of the mask decoder: prompt tokens and image tokens attend to each other.

Shapes: tokens (B, Q, T, D); image (B, q, n, D) with n = h * w, where q is 1 while the image is still the same for every
prompt and Q afterwards. What depends on the shared image alone is thereby computed once per image.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from sam_jax.modeling.common import Dense, LayerNorm, MlpBlock, einsum_float32
from sam_jax.types import Params


class SharedImage(NamedTuple):
    """What layer 0 computes from an image for all prompts without a mask; E is the inner width of its attention."""

    keys: Float[Array, "B 1 n E"]  # of the tokens' attention to the image
    values: Float[Array, "B 1 n E"]
    queries: Float[Array, "B 1 n E"]  # of the image's attention to the tokens


def share_image(
    params: Params, image: Float[Array, "B 1 n D"], image_positions: Float[Array, "n D"], dtype: DTypeLike
) -> SharedImage:
    """Computes what `TwoWayTransformer` needs of an image for all prompts without a mask.

    Args:
        params: of the transformer.
    """
    to_image, to_tokens = (params["layers_0"][f"cross_attn_{way}"] for way in ("token_to_image", "image_to_token"))

    def project(params: Params, x: Array) -> Any:
        D, inner = params["kernel"].shape
        return Dense(in_features=D, features=inner, dtype=dtype).apply({"params": params}, x)

    placed = image + image_positions
    return SharedImage(
        project(to_image["k_proj"], placed), project(to_image["v_proj"], image), project(to_tokens["q_proj"], placed)
    )


def einsum_over_prompts(spec: str, *operands: Float[Array, "..."]) -> Float32[Array, "..."]:
    """Computes `jnp.einsum` where an operand whose axis `q` has size 1 serves every prompt without being copied.

    The result has axis `q` too, of size 1 when that is the size in all operands.
    """
    inputs, output = spec.split("->")
    terms, arrays = [], []
    for term, array in zip(inputs.split(","), operands, strict=True):
        axis = term.find("q")
        shared = axis >= 0 and array.shape[axis] == 1
        terms.append(term.replace("q", "") if shared else term)
        arrays.append(array.squeeze(axis) if shared else array)
    if any("q" in term for term in terms):
        return einsum_float32(f"{','.join(terms)}->{output}", *arrays)
    result = einsum_float32(f"{','.join(terms)}->{output.replace('q', '')}", *arrays)
    return jnp.expand_dims(result, output.index("q"))


class DecoderAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the model's.

    Between a few tokens and thousands of image tokens, projecting the image costs more than attending. There the
    projection of the long side moves through the product onto the short side, `(x W) . t = x . (W t)` head by head:
    all heads of all tokens become columns of one matrix of `tokens * heads` columns, fewer than the inner width, and
    the long side is multiplied by it as it is. Shapes alone decide, per product; the function is the same.
    """

    dim: int
    heads: int
    downsample: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        q: Float[Array, " B #Q T D"],
        k: Float[Array, " B #Q S D"],
        v: Float[Array, " B #Q S D"],
        key_mask: Bool[Array, " B #Q S"] | None,
        deterministic: bool,
        projected: Mapping[str, Float[Array, " B #Q _ _"]] = MappingProxyType({}),
    ) -> Float[Array, " B #Q T D"]:
        """Attends from T queries to S keys; the queries, or the keys and values, may be the same for all prompts.

        Args:
            key_mask: False for keys that are not attended to.
            projected: queries, or keys and values, that are projected already, by the names "q", "k" and "v"; their
                projections are not folded into products.
        """
        D, H = self.dim, self.heads
        inner = D // self.downsample
        d = inner // H
        q_proj, k_proj, v_proj = (Dense(D, inner, self.dtype, name=f"{name}_proj") for name in "qkv")
        out_proj = Dense(inner, D, self.dtype, name="out_proj")
        (Q_q, T), (Q_k, S) = q.shape[1:3], k.shape[1:3]
        Q = max(Q_q, Q_k)
        einsum = einsum_over_prompts
        # Multiplications of both ways, in units of D, without what is small in both.
        fold_k_and_v = "k" not in projected and Q * T * (inner + S * H) < Q_k * S * inner
        fold_q = "q" not in projected and Q * S * (inner + T * H) < Q_q * T * inner
        fold_out = S * (inner + T * H) < T * inner

        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], H, d)

        def project(name: str, layer: Dense, x: Array) -> Array:
            return split(projected[name] if name in projected else layer(x))

        # The long side comes first in the scores: its matrix then is the left factor as it lies in memory.
        axes = "bqsht" if fold_k_and_v else "bqths" if S < T else "bqhts"
        key_axis = axes.index("s")
        if fold_k_and_v:
            # The bias of k adds the same to every key of a query: the softmax cancels it.
            queries = einsum("bqthd,Dhd->bqDht", project("q", q_proj, q) * d**-0.5, split(k_proj.weights()[0]))
            scores = einsum(f"bqsD,bqDht->{axes}", k, queries.astype(self.dtype))
        elif fold_q:
            kernel, bias = q_proj.weights()
            keys = project("k", k_proj, k) * d**-0.5
            offsets = einsum("bqshd,hd->bqhs", keys, split(bias))
            keys = einsum("bqshd,Dhd->bqDhs", keys, split(kernel))
            scores = einsum(f"bqtD,bqDhs->{axes}", q, keys.astype(self.dtype)) + offsets[:, :, None]
        else:
            scores = einsum(f"bqthd,bqshd->{axes}", project("q", q_proj, q) * d**-0.5, project("k", k_proj, k))

        if key_mask is not None:
            dims = [2 + i for i, axis in enumerate(axes[2:]) if axis != "s"]
            scores = jnp.where(jnp.expand_dims(key_mask, dims), scores, -jnp.inf)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(key_axis, keepdims=True)))
        total = weights.sum(key_axis, keepdims=True)

        if fold_k_and_v:
            # The weights sum to 1, so that the bias of v passes through.
            values = einsum(f"{axes},bqsD->bqhtD", weights.astype(self.dtype), v)
            values = (values / total[:, :, 0, ..., None]).astype(self.dtype)
            kernel, bias = v_proj.weights()
            out = einsum("bqhtD,Dhd->bqthd", values, split(kernel))
            out = out_proj(out.reshape(*out.shape[:-2], inner) + bias)
        elif fold_out:
            kernel, bias = out_proj.weights()
            values = einsum("bqshd,hdD->bqhsD", project("v", v_proj, v), kernel.reshape(H, d, D)).astype(self.dtype)
            out = einsum(f"{axes},bqhsD->bqtD", (weights / total).astype(self.dtype), values).astype(self.dtype)
            out = out + bias
        else:
            out = einsum(f"{axes},bqshd->bqthd", (weights / total).astype(self.dtype), project("v", v_proj, v))
            out = out_proj(out.reshape(*out.shape[:-2], inner))
        return nn.Dropout(self.dropout)(out, deterministic=deterministic)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, to the image, pass an MLP; then the image attends to the tokens. Post-norm."""

    dim: int
    heads: int
    mlp_dim: int
    downsample: int
    dropout: float
    skip_first_positions: bool  # layer 0: self-attention without positions and without residual
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B Q T D"],
        image: Float[Array, " B #Q n D"],
        token_positions: Float[Array, "B Q T D"],
        image_positions: Float[Array, "n D"],
        token_mask: Bool[Array, "B Q T"],
        deterministic: bool,
        shared: SharedImage | None,
    ) -> tuple[Float[Array, "B Q T D"], Float[Array, "B Q n D"]]:
        def attention(name: str, downsample: int) -> DecoderAttention:
            return DecoderAttention(self.dim, self.heads, downsample, self.dropout, self.dtype, name=name)

        keys_and_values = {"k": shared.keys, "v": shared.values} if shared else {}
        queries = {"q": shared.queries} if shared else {}

        def norm(name: str) -> LayerNorm:
            return LayerNorm(1e-5, self.dtype, name=name)  # the PyTorch default; everywhere else it is 1e-6

        self_attention = attention("self_attn", 1)
        if self.skip_first_positions:
            tokens = self_attention(tokens, tokens, tokens, token_mask, deterministic)
        else:
            q = tokens + token_positions
            tokens = tokens + self_attention(q, q, tokens, token_mask, deterministic)
        tokens = norm("norm1")(tokens)

        q, k = tokens + token_positions, image + image_positions
        token_to_image = attention("cross_attn_token_to_image", self.downsample)
        tokens = norm("norm2")(tokens + token_to_image(q, k, image, None, deterministic, keys_and_values))

        mlp = MlpBlock(self.dim, self.mlp_dim, nn.relu, self.dtype, name="mlp")(tokens)
        tokens = norm("norm3")(tokens + nn.Dropout(self.dropout)(mlp, deterministic=deterministic))

        q = tokens + token_positions
        image_to_token = attention("cross_attn_image_to_token", self.downsample)
        image = norm("norm4")(image + image_to_token(k, q, tokens, token_mask, deterministic, queries))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last attention of the tokens to the image."""

    depth: int
    dim: int
    heads: int
    mlp_dim: int
    downsample: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B Q T D"],
        image: Float[Array, " B #Q n D"],
        image_positions: Float[Array, "n D"],
        token_mask: Bool[Array, "B Q T"],
        deterministic: bool,
        shared: SharedImage | None,
    ) -> tuple[Float[Array, "B Q T D"], Float[Array, "B Q n D"]]:
        """Returns the tokens and the image after all blocks.

        Args:
            tokens: they also serve as their own positions in every layer.
            image: the same for all prompts, or one for each.
            token_mask: False where there is no token.
            shared: of the same image, from `share_image`; else computed here.
        """
        positions = tokens
        for i in range(self.depth):
            tokens, image = TwoWayBlock(
                dim=self.dim,
                heads=self.heads,
                mlp_dim=self.mlp_dim,
                downsample=self.downsample,
                dropout=self.dropout,
                skip_first_positions=i == 0,
                dtype=self.dtype,
                name=f"layers_{i}",
            )(tokens, image, positions, image_positions, token_mask, deterministic, shared if i == 0 else None)
        final = DecoderAttention(
            self.dim, self.heads, self.downsample, self.dropout, self.dtype, name="final_attn_token_to_image"
        )
        tokens = tokens + final(tokens + positions, image + image_positions, image, None, deterministic)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens), image
