"""RITM as a pure function: image, clicks and the previous mask in, logits out.

Reference: Sofiiuk et al. 2021, "Reviving Iterative Training with Mask Guidance for Interactive Segmentation".
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sam_jax.ritm.config import RitmConfig
from sam_jax.ritm.hrnet import STEM, Conv, HRNet, Level
from sam_jax.ritm.ocr import ContextHead
from sam_jax.ritm.sampling import inside, resize
from sam_jax.types import BACKGROUND, FOREGROUND, PAD, AnyArray, Params


class _Ritm(nn.Module):
    """Computes logits; `maps_transform` encodes the clicks, and digits are the published names."""

    config: RitmConfig

    @nn.compact
    def __call__(
        self, images: Float[AnyArray, "B H W 3"], maps: Float[AnyArray, "B H W C"], level: Level
    ) -> Float[Array, "B H W 1"]:
        clicks = Conv(16, use_bias=True, name="maps_transform_0")(maps, level)
        clicks = nn.leaky_relu(clicks, 0.2) if self.config.leaky_relu else nn.relu(clicks)
        clicks = Conv(STEM, 3, 2, use_bias=True, name="maps_transform_2")(clicks, level)
        clicks = clicks * jnp.abs(self.param("maps_transform_3_scale", nn.initializers.constant(0.05), (1,)))
        features, quarter = HRNet(self.config, name="feature_extractor")(images, clicks, level)
        logits = ContextHead(self.config.ocr_width, name="head")(features, quarter)
        return resize(logits, quarter.sizes, level.sizes, level.shape)


def init_params(config: RitmConfig, key: Key[Array, ""]) -> Params:
    """Returns random params, for shapes and tests, as training is not offered."""
    image = jnp.zeros((1, 32, 32, 3))
    maps = jnp.zeros((1, 32, 32, 2 + config.previous_mask))
    sizes = jnp.full((1, 2), 32)
    return _Ritm(config).init(key, image, maps, Level(sizes, inside(sizes, (32, 32))))["params"]


def predict_logits(
    params: Params,
    images: Float[AnyArray, "B H W 3"],
    previous: Float[AnyArray, "B H W"],
    points: Float[AnyArray, "B N 2"],
    labels: Int[AnyArray, "B N"],
    sizes: Int[AnyArray, "B 2"],
    config: RitmConfig,
) -> Float[Array, "B H W"]:
    """Predicts the logits of one object per image; it is where they are above 0.

    Args:
        images: RGB, 0-1.
        previous: probabilities of the object after the click before; zeros before the first. Models that do not take
            a previous mask ignore it.
        points: (x, y), pixels of `images`; fractions are taken as they are.
        labels: FOREGROUND, BACKGROUND, or PAD where there is no click.
        sizes: (h, w) of the images in the upper left corners of their arrays. What lies beyond does not count, and
            the logits there mean nothing.
    """
    shape = (images.shape[1], images.shape[2])
    maps = click_disks(points, labels, config.click_radius, shape)
    if config.previous_mask:
        maps = jnp.concatenate([previous[..., None], maps], -1)
    images = (images - jnp.array(config.pixel_mean)) / jnp.array(config.pixel_std)
    logits: Any = _Ritm(config).apply({"params": params}, images, maps, Level(sizes, inside(sizes, shape)))
    return logits[..., 0]


def click_disks(
    points: Float[AnyArray, "B N 2"], labels: Int[AnyArray, "B N"], radius: float, shape: tuple[int, int]
) -> Float[Array, "B H W 2"]:
    """Draws disks around the clicks: 1 in them, else 0; those of foreground clicks first.

    A click that lies both left of and above the image is dropped, though its disk may reach into it: to the
    published code such coordinates mean that there is no click.
    """
    dx = jnp.arange(shape[1]) - points[:, :, None, None, 0]
    dy = jnp.arange(shape[0])[:, None] - points[:, :, None, None, 1]
    labels = jnp.where(points.max(-1) < 0, PAD, labels)[:, :, None, None]
    near = dy * dy + dx * dx <= radius**2
    maps = [(near & (labels == label)).any(1) for label in (FOREGROUND, BACKGROUND)]
    return jnp.stack(maps, -1).astype(jnp.float32)
