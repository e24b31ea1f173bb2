"""Decodes image embeddings and prompt tokens to mask logits and IoU predictions."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from sam_jax.config import SamConfig
from sam_jax.modeling.common import LayerNorm, MlpHead, einsum_float32, fan_in_uniform, gelu
from sam_jax.modeling.transformer import SharedImage, TwoWayTransformer
from sam_jax.types import AnyArray


class Upconv(nn.Module):
    """Convolves transposed, 2 x 2 with stride 2: each pixel becomes 4, on an axis of their own. Kernel (2, 2, in, out).

    The order of the 4 is (top left, top right, bottom left, bottom right). The pixels are laid out only once, at the
    end, when there are few channels left to move.
    """

    in_features: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch {self.in_features}"]) -> Float[Array, "*batch 4 {self.features}"]:
        init = fan_in_uniform(4 * self.features)  # PyTorch counts the fan of a transposed kernel on its output side
        kernel = self.param("kernel", init, (2, 2, self.in_features, self.features)).astype(self.dtype)
        bias = self.param("bias", init, (self.features,)).astype(self.dtype)
        # Of the ways to write this product, the one whose gradients make a TPU copy the least.
        return jnp.einsum("...i,pio->...po", x, kernel.reshape(4, self.in_features, self.features)) + bias


class MaskDecoder(nn.Module):
    """Returns logits and IoU predictions of the M mask tokens in `outputs`.

    There are four; that of index 0 is the single-mask output. Finer maps in the embeddings (`FineNeck`) are added in
    the up-scaling. With `iou_sees_mask` the predicted IoU is that of SAM's head plus weighted `mask_statistics`.
    """

    config: SamConfig
    dtype: DTypeLike = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        embeddings: Float[AnyArray, "B h w E"],
        positions: Float[Array, "h w D"],
        sparse: Float[Array, "B Q T D"],
        sparse_mask: Bool[AnyArray, "B Q T"],
        dense: Float[Array, "#B #Q #h #w D"],
        deterministic: bool = True,
        shared: SharedImage | None = None,
        outputs: slice = slice(None),
    ) -> tuple[Float32[Array, "B Q M 4*h 4*w"], Float32[Array, "B Q M"]]:
        c, D, M = self.config, self.config.prompt_dim, self.config.num_mask_tokens
        B, Q = sparse.shape[:2]
        h, w = embeddings.shape[1:3]
        normal = nn.initializers.normal(1.0)
        iou_token = self.param("iou_token", normal, (1, D))
        mask_tokens = self.param("mask_tokens", normal, (M, D))
        output_tokens = jnp.concatenate([iou_token, mask_tokens]).astype(self.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(output_tokens, (B, Q, 1 + M, D)), sparse], 2)
        token_mask = jnp.concatenate([jnp.ones((B, Q, 1 + M), bool), sparse_mask], 2)
        embeddings = embeddings.astype(self.dtype)
        image = embeddings[:, None, ..., :D] + dense

        tokens, image = TwoWayTransformer(
            depth=c.decoder_depth,
            dim=D,
            heads=c.decoder_heads,
            mlp_dim=c.decoder_mlp_dim,
            downsample=c.decoder_attention_downsample,
            dropout=self.dropout,
            dtype=self.dtype,
            name="transformer",
        )(tokens, image.reshape(B, -1, h * w, D), positions.reshape(h * w, D), token_mask, deterministic, shared)

        iou_head = MlpHead(D, c.iou_head_hidden_dim, M, c.iou_head_depth, self.dtype, name="iou_prediction_head")
        iou_predictions = iou_head(tokens[:, :, 0])[:, :, outputs]
        hyper = jnp.stack(
            [
                MlpHead(D, D, D // 8, 3, self.dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, :, 1 + i])
                for i in range(M)[outputs]
            ],
            2,
        )  # (B, Q, m, D / 8)

        x = Upconv(D, D // 4, self.dtype, name="output_upscaling_0")(image)
        if c.high_res_features:
            x = x + embeddings[..., D : 2 * D].reshape(B, 1, h * w, 4, D // 4)
        x = gelu(LayerNorm(dtype=self.dtype, name="output_upscaling_1")(x))
        x = Upconv(D // 4, D // 8, self.dtype, name="output_upscaling_3")(x)
        if c.high_res_features:
            x = x + embeddings[..., 2 * D :].reshape(B, 1, h * w, 4, 4, D // 8)
        x = gelu(x)
        # The many pixels are the left factor, as they lie in memory; only the few masks are moved.
        logits = einsum_float32("bqnxyd,bqmd->bqnxym", x, hyper)
        logits = logits.reshape(B, Q, h, w, 2, 2, 2, 2, -1).transpose(0, 1, 8, 2, 4, 6, 3, 5, 7)
        logits = logits.reshape(B, Q, -1, 4 * h, 4 * w)
        iou_predictions = iou_predictions.astype(jnp.float32)
        if c.iou_sees_mask:
            weights = self.param("iou_statistics", nn.initializers.zeros, (4,))
            iou_predictions += mask_statistics(logits) @ weights[:3] + weights[3]
        return logits, iou_predictions


def mask_statistics(logits: Float32[AnyArray, "*batch H W"]) -> Float32[Array, "*batch 3"]:
    """Returns what tells good masks from bad ones besides the tokens: how certain and stable a mask is, and its size.

    These are the mean of |2 p - 1| over the mask, where p is the probability of a pixel; the area at logits above 1 in
    parts of that above -1; and the root of the mask's part of the frame. An empty mask has zeros. No gradient passes.
    """
    logits = jax.lax.stop_gradient(logits)

    def area(threshold: float) -> Array:
        return jnp.sum(logits > threshold, (-2, -1), dtype=jnp.float32)

    inside = jnp.where(logits > 0, jnp.tanh(logits / 2), 0.0)
    certainty = inside.sum((-2, -1)) / jnp.maximum(area(0.0), 1.0)
    stability = area(1.0) / jnp.maximum(area(-1.0), 1.0)
    size = jnp.sqrt(area(0.0) / (logits.shape[-2] * logits.shape[-1]))
    return jnp.stack([certainty, stability, size], -1)
