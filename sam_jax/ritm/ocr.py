"""Defines the head, which turns features into logits with object-contextual representations.

Reference: Yuan et al. 2020, "Object-Contextual Representations for Semantic Segmentation", section 3.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sam_jax.modeling.common import FrozenBatchNorm
from sam_jax.ritm.hrnet import Conv, Level


class Projection(nn.Module):
    """Applies convolutions of one pixel, each with norm and ReLU."""

    features: int
    depth: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], level: Level) -> Float[Array, "B H W D"]:
        for i in range(self.depth):
            x = Conv(self.features, name=f"{2 * i}")(x, level)
            x = nn.relu(FrozenBatchNorm(name=f"{2 * i + 1}_0")(x))
        return x


class ObjectAttention(nn.Module):
    """Gives each pixel features of the regions, weighted by its similarity to them."""

    width: int  # width of keys and values

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W D"], regions: Float[Array, "B 1 K D"], level: Level
    ) -> Float[Array, "B H W D"]:
        query = Projection(self.width, 2, name="f_pixel")(x, level)
        key = Projection(self.width, 2, name="f_object")(regions, level)
        value = Projection(self.width, name="f_down")(regions, level)
        likeness = jnp.einsum("bhwd,bikd->bhwk", query, key) * self.width**-0.5
        context = jnp.einsum("bhwk,bikd->bhwd", jax.nn.softmax(likeness, -1), value)
        return Projection(x.shape[-1], name="f_up")(context, level)


class ContextHead(nn.Module):
    """Computes logits: coarse ones say where the region is, whose mean feature then helps each pixel.

    The original's dropout is left out, as it is for training alone.
    """

    width: int

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"], level: Level) -> Float[Array, "B H W 1"]:
        channels = features.shape[-1]
        coarse = Conv(channels, use_bias=True, name="aux_head_0")(features, level)
        coarse = nn.relu(FrozenBatchNorm(name="aux_head_1")(coarse))
        coarse = Conv(1, use_bias=True, name="aux_head_3")(coarse, level)

        x = Conv(2 * self.width, 3, use_bias=True, name="conv3x3_ocr_0")(features, level)
        x = nn.relu(FrozenBatchNorm(name="conv3x3_ocr_1")(x))
        weights = jax.nn.softmax(coarse, (1, 2), where=level.inside)
        regions = jnp.einsum("bhwk,bhwd->bkd", weights, x)[:, None]
        context = ObjectAttention(self.width, name="ocr_distri_head_object_context_block")(x, regions, level)
        x = jnp.concatenate([context, x], -1)
        x = Projection(2 * self.width, name="ocr_distri_head_conv_bn_dropout")(x, level)
        return Conv(1, use_bias=True, name="cls_head")(x, level)
