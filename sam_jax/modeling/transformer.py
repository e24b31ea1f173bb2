"""The two-way transformer of the mask decoder: prompt tokens and image tokens attend to each other.

Shapes: tokens (B, Q, T, D); image (B, q, n, D) with n = h * w, where q is 1 while the image is still the same for every
prompt and Q afterwards. What depends on the shared image alone is thereby computed once per picture.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.modeling.common import Dense, LayerNorm, MlpBlock


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the model's."""

    dim: int
    heads: int
    downsample: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        """q (B, Q, T, D), k and v (B, Q, S, D), where either Q may be 1; key_mask (B, Q, S), False drops a key."""
        inner = self.dim // self.downsample
        d = inner // self.heads

        def project(x: jax.Array, name: str) -> jax.Array:
            x = Dense(self.dim, inner, self.dtype, name=name)(x)
            return x.reshape(*x.shape[:-1], self.heads, d)

        q, k, v = project(q, "q_proj"), project(k, "k_proj"), project(v, "v_proj")
        groups = max(q.shape[1], k.shape[1])
        if q.shape[1] == k.shape[1]:
            q_axis = k_axis = "q"
        else:  # one side is shared by all prompts: keep it so, and let the product do the broadcasting
            q_axis, k_axis = ("q" if q.shape[1] == groups else "o"), ("q" if k.shape[1] == groups else "o")
            q = q[:, 0] if q_axis == "o" else q
            k, v = (k[:, 0], v[:, 0]) if k_axis == "o" else (k, v)
        q_axes = f"b{'' if q_axis == 'o' else 'q'}tnd"
        k_axes = f"b{'' if k_axis == 'o' else 'q'}snd"
        logits = jnp.einsum(f"{q_axes},{k_axes}->bqnts", q * d**-0.5, k, preferred_element_type=jnp.float32)
        if key_mask is not None:
            logits = jnp.where(key_mask[:, :, None, None, :], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, -1).astype(self.dtype)
        out = jnp.einsum(f"bqnts,{k_axes}->bqtnd", weights, v)
        out = Dense(inner, self.dim, self.dtype, name="out_proj")(out.reshape(*out.shape[:-2], inner))
        return nn.Dropout(self.dropout)(out, deterministic=deterministic)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, to the image, pass an MLP; then the image attends to the tokens. Post-norm."""

    dim: int
    heads: int
    mlp_dim: int
    downsample: int
    dropout: float
    skip_first_positions: bool  # layer 0: self-attention without positions and without residual
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        token_positions: jax.Array,
        image_positions: jax.Array,
        token_mask: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        def attention(name: str, downsample: int) -> Attention:
            return Attention(self.dim, self.heads, downsample, self.dropout, self.dtype, name=name)

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
        tokens = norm("norm2")(tokens + token_to_image(q, k, image, None, deterministic))

        mlp = MlpBlock(self.dim, self.mlp_dim, nn.relu, self.dtype, name="mlp")(tokens)
        tokens = norm("norm3")(tokens + nn.Dropout(self.dropout)(mlp, deterministic=deterministic))

        q = tokens + token_positions
        image_to_token = attention("cross_attn_image_to_token", self.downsample)
        image = norm("norm4")(image + image_to_token(k, q, tokens, token_mask, deterministic))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a last attention of the tokens to the image."""

    depth: int
    dim: int
    heads: int
    mlp_dim: int
    downsample: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        image: jax.Array,
        image_positions: jax.Array,
        token_mask: jax.Array,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Args:
            tokens: (B, Q, T, D); they also serve as their own positions in every layer.
            image: (B, q, n, D), q 1 or Q.
            image_positions: (n, D).
            token_mask: (B, Q, T), False where there is no token.

        Returns:
            tokens (B, Q, T, D) and image (B, Q, n, D).
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
            )(tokens, image, positions, image_positions, token_mask, deterministic)
        final = Attention(
            self.dim, self.heads, self.downsample, self.dropout, self.dtype, name="final_attn_token_to_image"
        )
        tokens = tokens + final(tokens + positions, image + image_positions, image, None, deterministic)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens), image
