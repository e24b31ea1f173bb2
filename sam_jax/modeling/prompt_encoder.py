"""Encodes points, boxes, texts and masks as tokens and a dense embedding."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.config import SamConfig
from sam_jax.modeling.common import LayerNorm, PatchConv, gelu
from sam_jax.types import NOT_A_POINT, PAD, AnyArray, Params, Prompts


class FourierPositions(nn.Module):
    """Computes random Fourier features of positions in [0, 1]^2. The matrix is fixed: no gradient reaches it.

    Always float32: 2 pi c G reaches tens of radians, which bfloat16 resolves to a tenth of a turn.
    """

    dim: int

    @nn.compact
    def __call__(self, xy: Float[AnyArray, "*batch 2"]) -> Float[Array, "*batch {self.dim}"]:
        matrix = self.param("positional_encoding_gaussian_matrix", nn.initializers.normal(1.0), (2, self.dim // 2))
        # HIGHEST: on TPU and recent GPUs a default-precision product would round the angles to 8-10 bits.
        angles = jnp.matmul(2.0 * xy - 1.0, jax.lax.stop_gradient(matrix), precision=jax.lax.Precision.HIGHEST)
        angles = 2.0 * math.pi * angles
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def _text_projection(config: SamConfig, dtype: DTypeLike) -> nn.Dense:
    # Embeddings have length 1, so the token of a text starts with the spread of a point's.
    return nn.Dense(config.prompt_dim, dtype=dtype, kernel_init=nn.initializers.normal(1.0))


def init_text_projection(config: SamConfig, key: Key[Array, ""]) -> Params:
    """Returns random params of the text prompt alone, for a model that gets one."""
    return _text_projection(config, jnp.float32).init(key, jnp.zeros((1, config.text_dim)))["params"]


class PromptEncoder(nn.Module):
    """Encodes prompts in the input frame, and the positions of the image's patches."""

    config: SamConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c, D = self.config, self.config.prompt_dim
        self.pe_layer = FourierPositions(D)
        normal = nn.initializers.normal(1.0)
        self.point_embeddings = [self.param(f"point_embeddings_{i}", normal, (1, D)) for i in range(4)]
        self.not_a_point_embed = self.param("not_a_point_embed", normal, (1, D))
        self.no_mask_embed = self.param("no_mask_embed", normal, (1, D))
        self.mask_downscaling_0 = PatchConv(1, c.mask_channels // 4, 2, self.dtype)
        self.mask_downscaling_1 = LayerNorm(dtype=self.dtype)
        self.mask_downscaling_3 = PatchConv(c.mask_channels // 4, c.mask_channels, 2, self.dtype)
        self.mask_downscaling_4 = LayerNorm(dtype=self.dtype)
        self.mask_downscaling_6 = PatchConv(c.mask_channels, D, 1, self.dtype)
        if c.text_dim:
            self.text_projection = _text_projection(c, self.dtype)

    def image_positions(self) -> Float[Array, "{self.config.grid_size} {self.config.grid_size} D"]:
        """Encodes the positions of the patch centres."""
        centres = (jnp.arange(self.config.grid_size) + 0.5) / self.config.grid_size
        return self.pe_layer(jnp.stack(jnp.meshgrid(centres, centres, indexing="xy"), -1)).astype(self.dtype)

    def embed_points(
        self, points: Float[AnyArray, "*batch N 2"], labels: Int[AnyArray, "*batch N"]
    ) -> Float[Array, "*batch N {self.config.prompt_dim}"]:
        """Encodes points (x, y) in pixels of the input frame, and their labels, as tokens."""
        xy = (points.astype(jnp.float32) + 0.5) / self.config.image_size
        # Row 0 is NOT_A_POINT; PAD borrows it, being masked out later.
        table = jnp.concatenate([self.not_a_point_embed, *self.point_embeddings])
        embedding = table[jnp.maximum(labels, NOT_A_POINT) + 1]
        positions = jnp.where((labels > NOT_A_POINT)[..., None], self.pe_layer(xy), 0.0)
        return (positions + embedding).astype(self.dtype)

    def embed_masks(
        self, logits: Float[AnyArray, "*batch S S"]
    ) -> Float[Array, "*batch S//4 S//4 {self.config.prompt_dim}"]:
        """Encodes low_res logits as embeddings of the patches."""
        x = gelu(self.mask_downscaling_1(self.mask_downscaling_0(logits[..., None])))
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(x)))
        return self.mask_downscaling_6(x)

    def __call__(
        self, prompts: Prompts
    ) -> tuple[Float[Array, "B Q T D"], Bool[AnyArray, "B Q T"], Float[Array, "#B #Q #h #w D"], Float[Array, "h w D"]]:
        """Encodes B x Q prompts.

        Returns:
            T tokens for each prompt, that of its text last; False where there is no token; the dense embedding, whose
            axes but the last are 1 where no prompt carries a mask; and `image_positions`.
        """
        sparse, present = self.embed_points(prompts.points, prompts.labels), prompts.labels != PAD
        if prompts.text_embeddings is not None:
            has_text = jnp.ones(present.shape[:2], bool) if prompts.has_text is None else prompts.has_text
            sparse = jnp.concatenate([sparse, self.text_projection(prompts.text_embeddings)[:, :, None]], 2)
            present = jnp.concatenate([present, has_text[:, :, None]], 2)
        dense = self.no_mask_embed.astype(self.dtype)[None, None, None]
        if prompts.mask_logits is not None:
            masks = self.embed_masks(prompts.mask_logits)
            if prompts.has_mask is None:
                dense = masks
            else:
                dense = jnp.where(prompts.has_mask[:, :, None, None, None], masks, dense)
        elif self.is_initializing():
            side = self.config.low_res_size
            self.embed_masks(jnp.zeros((1, 1, side, side)))
        if self.config.text_dim and self.is_initializing():
            self.text_projection(jnp.zeros((1, self.config.text_dim)))
        return sparse, present, dense, self.image_positions()
