"""Defines HRNet's backbone at inference: four resolutions side by side that exchange features.

Images may be smaller than their arrays. Every convolution that looks at neighbours reads zeros outside the image,
as it would beyond the border of an array that just holds it, so the results do not depend on the array.

Reference: Wang et al. 2019, "Deep High-Resolution Representation Learning for Visual Recognition".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sam_jax.modeling.common import FrozenBatchNorm, fan_in_uniform
from sam_jax.ritm.config import RitmConfig
from sam_jax.ritm.sampling import inside, resize

STEM = 64  # channels of the stem, whatever the width
BOTTLENECK = 4  # how many times wider the stem's blocks are outside than inside


class Level(NamedTuple):
    """The part of the arrays that is image, at one resolution."""

    sizes: Int[Array, "B 2"]  # (h, w)
    inside: Bool[Array, "B H W 1"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.inside.shape[1], self.inside.shape[2]

    def halved(self) -> Level:
        """Returns the level after a convolution of stride 2."""
        sizes = (self.sizes + 1) // 2
        return Level(sizes, inside(sizes, ((self.shape[0] + 1) // 2, (self.shape[1] + 1) // 2)))


class Conv(nn.Module):
    """Convolves with zeros around the image at `level`; the kernel is (k, k, in, out)."""

    features: int
    kernel: int = 1
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], level: Level) -> Float[Array, "B h w D"]:
        k, fan_in = self.kernel, self.kernel**2 * x.shape[-1]
        kernel = self.param("kernel", fan_in_uniform(fan_in), (k, k, x.shape[-1], self.features))
        if k > 1:
            x = jnp.where(level.inside, x, 0)
        x = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,) * 2, [(k // 2, k // 2)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + self.param("bias", fan_in_uniform(fan_in), (self.features,)) if self.use_bias else x


class BasicBlock(nn.Module):
    """Applies two convolutions and a shortcut. A row of such blocks is one loop: see `in_a_row`."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], level: Level) -> tuple[Float[Array, "B H W C"], None]:
        y = nn.relu(FrozenBatchNorm(name="bn1")(Conv(self.features, 3, name="conv1")(x, level)))
        y = FrozenBatchNorm(name="bn2")(Conv(self.features, 3, name="conv2")(y, level))
        return nn.relu(x + y), None


class Bottleneck(nn.Module):
    """Applies three convolutions, the middle one narrow, and a shortcut."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], level: Level) -> Float[Array, "B H W D"]:
        wide = BOTTLENECK * self.features
        y = nn.relu(FrozenBatchNorm(name="bn1")(Conv(self.features, name="conv1")(x, level)))
        y = nn.relu(FrozenBatchNorm(name="bn2")(Conv(self.features, 3, name="conv2")(y, level)))
        y = FrozenBatchNorm(name="bn3")(Conv(wide, name="conv3")(y, level))
        if x.shape[-1] != wide:
            x = FrozenBatchNorm(name="downsample_1")(Conv(wide, name="downsample_0")(x, level))
        return nn.relu(x + y)


def in_a_row(module: type[nn.Module], times: int) -> Callable[..., Any]:
    """Returns `times` modules that are alike, one after the other, compiled once; params get a leading axis."""
    return nn.scan(module, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=times)


class Exchange(nn.Module):
    """Applies residual blocks at each resolution, then makes each the sum of all, brought to its size."""

    widths: tuple[int, ...]
    blocks: int

    @nn.compact
    def __call__(
        self, x: list[Float[Array, "B _ _ _"]], levels: list[Level]
    ) -> tuple[list[Float[Array, "B _ _ _"]], None]:
        block = in_a_row(BasicBlock, self.blocks)
        x = [block(width, name=f"branches_{b}")(x[b], levels[b])[0] for b, width in enumerate(self.widths)]
        return [nn.relu(sum(self._bring(x[j], j, i, levels) for j in range(len(x)))) for i in range(len(x))], None

    def _bring(self, x: Array, source: int, target: int, levels: list[Level]) -> Array:
        """Brings features of one resolution to another."""
        name = f"fuse_layers_{target}_{source}"
        if source > target:
            x = FrozenBatchNorm(name=f"{name}_1")(Conv(self.widths[target], name=f"{name}_0")(x, levels[source]))
            return resize(x, levels[source].sizes, levels[target].sizes, levels[target].shape)
        for k in range(target - source):
            last = source + k == target - 1
            width = self.widths[target if last else source]
            x = Conv(width, 3, 2, name=f"{name}_{k}_0")(x, levels[source + k])
            x = FrozenBatchNorm(name=f"{name}_{k}_1")(x)
            x = x if last else nn.relu(x)
        return x


class HRNet(nn.Module):
    """Turns image and encoded clicks into features of all resolutions, at a quarter of the image's."""

    config: RitmConfig

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], clicks: Float[Array, "B h w C"], level: Level
    ) -> tuple[Float[Array, "B k l D"], Level]:
        """
        Args:
            images: normalised.
            clicks: at half the resolution; added to the first convolution's output.
            level: of `images`.

        Returns:
            features, 15 times the width, and their level.
        """
        x = nn.relu(FrozenBatchNorm(name="bn1")(Conv(STEM, 3, 2, name="conv1")(images, level))) + clicks
        level = level.halved()
        x = nn.relu(FrozenBatchNorm(name="bn2")(Conv(STEM, 3, 2, name="conv2")(x, level)))
        levels = [level.halved()]
        for i in range(self.config.blocks):
            x = Bottleneck(STEM, name=f"layer1_{i}")(x, levels[0])
        branches = [x]
        for stage, modules in enumerate(self.config.modules):
            widths = tuple(self.config.width * 2**b for b in range(stage + 2))
            branches = self._widen(branches, widths, stage + 1, levels)
            levels.append(levels[-1].halved())
            exchange = in_a_row(Exchange, modules)
            branches, _ = exchange(widths, self.config.blocks, name=f"stage{stage + 2}")(branches, levels)
        same = [resize(x, its.sizes, levels[0].sizes, levels[0].shape) for x, its in zip(branches, levels, strict=True)]
        return jnp.concatenate(same, -1), levels[0]

    def _widen(self, branches: list[Array], widths: tuple[int, ...], number: int, levels: list[Level]) -> list[Array]:
        """Adds a resolution, half of the lowest one; the others get the width that the stage has for them."""
        wanted = []
        for b, width in enumerate(widths):
            new = b == len(branches)
            x = branches[-1] if new else branches[b]
            if new or x.shape[-1] != width:
                name = f"transition{number}_{b}" + ("_0" if new else "")
                x = Conv(width, 3, 2 if new else 1, name=f"{name}_0")(x, levels[-1] if new else levels[b])
                x = nn.relu(FrozenBatchNorm(name=f"{name}_1")(x))
            wanted.append(x)
        return wanted
