"""A convolutional image encoder, as one would be added: one file, and one entry in `encoders.ENCODERS`."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.config import EncoderConfig
from sam_jax.modeling.common import DropPath, FrozenBatchNorm, PatchConv
from sam_jax.modeling.encoders.base import Encoder, Trunk
from sam_jax.types import Params


@dataclasses.dataclass(frozen=True)
class ConvConfig(EncoderConfig):
    """Stages of one residual block each; the first has a stride of 4 pixels, each later one twice the one before."""

    kind: ClassVar[str] = "conv"
    widths: tuple[int, ...] = (8, 16, 24, 32)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.widths) + 1)

    @property
    def features(self) -> int:
        return self.widths[-1]


class Stage(nn.Module):
    """A convolution whose stride is its size, and a residual block with a depthwise convolution."""

    width: int
    stride: int
    drop_path: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        x = PatchConv(x.shape[-1], self.width, self.stride, self.dtype, name="down")(x)
        depthwise = nn.Conv(
            self.width, (3, 3), feature_group_count=self.width, use_bias=False, dtype=self.dtype, name="conv"
        )
        y = nn.relu(FrozenBatchNorm(1e-3, self.dtype, name="norm")(depthwise(x)))
        return x + DropPath(self.drop_path)(y, deterministic)


class ConvTrunk(Trunk[ConvConfig]):
    """The maps are those of the stages, by stride. A position embedding comes to the last."""

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> dict[str, jax.Array]:
        c, x, maps = self.config, images, {}
        stage_class = nn.remat(Stage, static_argnums=(2,)) if self.remat else Stage
        for i, width in enumerate(c.widths):
            rate = self.drop_path * i / max(len(c.widths) - 1, 1)
            x = stage_class(width, 2 if i else 4, rate, self.dtype, name=f"stages_{i}")(x, deterministic)
            maps[f"stride_{4 * 2**i}"] = x
        shape = (1, c.grid_size, c.grid_size, c.features)
        return maps | {"last": x + self.param("positions", nn.initializers.normal(0.02), shape).astype(self.dtype)}


def conv_flops(config: ConvConfig) -> float:
    flops, channels = 0.0, 3
    for i, width in enumerate(config.widths):
        cells = (config.image_size // (4 * 2**i)) ** 2
        flops += 2.0 * cells * width * (channels * (2 if i else 4) ** 2 + 9)
        channels = width
    return flops


def resize_conv(params: Params, old: ConvConfig, new: ConvConfig) -> Params:
    shape = (1, new.grid_size, new.grid_size, new.features)
    return params | {"positions": jax.image.resize(params["positions"], shape, "linear", antialias=False)}


ENCODER = Encoder(
    config=ConvConfig,
    trunk=ConvTrunk,
    layers=lambda config: tuple(rf"^stages_{i}/" for i in range(len(config.widths))),
    flops=conv_flops,
    resize=resize_conv,
)
