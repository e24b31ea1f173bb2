"""TinyViT, the image encoder of MobileSAM: convolutions at stride 4, then attention in windows and convolutions.

Reference: Wu et al. 2022 (TinyViT); Zhang et al. 2023 (MobileSAM), whose last stage keeps the stride of 16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sam_jax.config import MOBILE_SAM, TinyViTConfig
from sam_jax.modeling.common import (
    Dense,
    DepthwiseConv,
    DropPath,
    FrozenBatchNorm,
    LayerNorm,
    einsum_float32,
    fan_in_uniform,
    gelu,
    multiply,
)
from sam_jax.modeling.encoders.base import Encoder, OfficialNames, Shape, Trunk
from sam_jax.modeling.encoders.vit import merge_windows, partition_windows

EPSILON = 1e-5  # of the layer norms
CLASSES = 1000  # of the classifier in the published files


class PaddedConv(nn.Module):
    """Convolves without a bias: 1 x 1, or 3 x 3 with a pixel of padding on each side, as PyTorch pads."""

    features: int
    kernel: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ {self.features}"]:
        k = self.kernel
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_in_uniform(k * k * x.shape[-1]), shape).astype(self.dtype)
        if k == 1:
            return multiply(x, kernel[0, 0])
        padding = ((k // 2, k // 2),) * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, padding, dimension_numbers=numbers)


class ConvNorm(nn.Module):
    """A convolution, depthwise or not, and a batch norm."""

    features: int
    dtype: DTypeLike
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ {self.features}"]:
        x = x.astype(self.dtype)
        if self.depthwise:
            # PyTorch pads a pixel on each side; at stride 2, "SAME" would not. So it is left to the choice of pixels.
            x = DepthwiseConv(self.kernel, 1, self.dtype, name="c")(x)
            x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, self.stride, self.stride, 1))
        else:
            x = PaddedConv(self.features, self.kernel, self.stride, self.dtype, name="c")(x)
        return FrozenBatchNorm(dtype=self.dtype, name="bn")(x)


class ConvBlock(nn.Module):
    """Widens by a 1 x 1 convolution, convolves depthwise, narrows again, and adds its input."""

    expansion: float
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], deterministic: bool) -> Float[Array, "B h w C"]:
        C = x.shape[-1]
        hidden = int(C * self.expansion)
        y = gelu(ConvNorm(hidden, self.dtype, name="conv1")(x))
        y = gelu(ConvNorm(hidden, self.dtype, 3, depthwise=True, name="conv2")(y))
        y = ConvNorm(C, self.dtype, name="conv3")(y)
        return gelu(x + DropPath(self.drop_path)(y, deterministic))


class Downsample(nn.Module):
    """Brings a map to the width and the stride of the next stage."""

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ {self.features}"]:
        x = gelu(ConvNorm(self.features, self.dtype, name="conv1")(x))
        x = gelu(ConvNorm(self.features, self.dtype, 3, self.stride, depthwise=True, name="conv2")(x))
        return ConvNorm(self.features, self.dtype, name="conv3")(x)


class WindowAttention(nn.Module):
    """Attention in a window, with a learned bias for each distance in rows and columns."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        B, h, w, D = x.shape
        d = D // self.heads
        x = LayerNorm(EPSILON, self.dtype, name="norm")(x).reshape(B, h * w, D)
        qkv = Dense(D, 3 * D, self.dtype, name="qkv")(x).reshape(B, h * w, self.heads, 3, d)
        q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
        biases = self.param("attention_biases", nn.initializers.zeros, (self.heads, h * w))
        rows, cols = (np.abs(np.subtract.outer(n, n)) for n in np.divmod(np.arange(h * w), w))
        logits = einsum_float32("bqhd,bkhd->bhqk", q * d**-0.5, k) + biases[:, rows * w + cols]
        weights = jax.nn.softmax(logits, -1).astype(self.dtype)
        out = einsum_float32("bhqk,bkhd->bqhd", weights, v).astype(self.dtype)
        return Dense(D, D, self.dtype, name="proj")(out.reshape(B, h, w, D))


class Mlp(nn.Module):
    """A layer norm and a two-layer feed-forward network."""

    hidden: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        D = x.shape[-1]
        y = LayerNorm(EPSILON, self.dtype, name="norm")(x)
        y = gelu(Dense(D, self.hidden, self.dtype, name="fc1")(y))
        return Dense(self.hidden, D, self.dtype, name="fc2")(y)


class TinyViTBlock(nn.Module):
    """Attention in windows, a depthwise convolution, and an MLP."""

    heads: int
    window: int
    mlp_ratio: float
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"], deterministic: bool) -> Float[Array, "B h w D"]:
        h, w, D = x.shape[1:]
        drop = DropPath(self.drop_path)
        # Padding passes the norm and takes part as keys and values, as in the original.
        y = WindowAttention(self.heads, self.dtype, name="attn")(partition_windows(x, self.window))
        x = x + drop(merge_windows(y, (h, w)), deterministic)
        x = ConvNorm(D, self.dtype, 3, depthwise=True, name="local_conv")(x)
        return x + drop(Mlp(int(D * self.mlp_ratio), self.dtype, name="mlp")(x), deterministic)


class Stage(nn.Module):
    """The blocks of a stage, and what brings their map to the next one. Returns the maps before and after that."""

    config: TinyViTConfig
    stage: int
    drop_paths: tuple[float, ...]
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], deterministic: bool
    ) -> tuple[Float[Array, "B h w C"], Float[Array, "B _ _ _"]]:
        c, i = self.config, self.stage

        def rematerialised(block: type[nn.Module]) -> type[nn.Module]:
            return nn.remat(block, static_argnums=(2,)) if self.remat else block

        for j, drop_path in enumerate(self.drop_paths):
            if i == 0:
                block = rematerialised(ConvBlock)(c.expansion, drop_path, self.dtype, name=f"blocks_{j}")
            else:
                block = rematerialised(TinyViTBlock)(
                    c.heads[i], c.windows[i], c.mlp_ratio, drop_path, self.dtype, name=f"blocks_{j}"
                )
            x = block(x, deterministic)
        if i + 1 == len(c.widths):
            return x, x
        return x, Downsample(c.widths[i + 1], STRIDES[i], self.dtype, name="downsample")(x)


STRIDES = (2, 2, 1)  # between the stages


class TinyViT(Trunk[TinyViTConfig]):
    """The maps are the outputs of the stages, "stride_4", "stride_8" and "stride_16", and "last".

    The rate of the drop path grows linearly from 0 at the first block.
    """

    @nn.compact
    def __call__(
        self, images: Float[Array, "B S S 3"], deterministic: bool = True
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        c = self.config
        x = gelu(ConvNorm(c.widths[0] // 2, self.dtype, 3, 2, name="patch_embed_seq_0")(images))
        x = ConvNorm(c.widths[0], self.dtype, 3, 2, name="patch_embed_seq_2")(x)
        rates = np.linspace(0.0, self.drop_path, sum(c.depths)).tolist()
        starts = np.cumsum([0, *c.depths])
        maps = {}
        for i in range(len(c.widths)):
            own = tuple(rates[starts[i] : starts[i + 1]])
            before, x = Stage(c, i, own, self.dtype, self.remat, name=f"layers_{i}")(x, deterministic)
            maps[("stride_4", "stride_8", "stride_16", "last")[i]] = before
        if self.is_initializing():  # a classifier in the published files, which nothing uses: kept to write them again
            LayerNorm(EPSILON, name="norm_head")(jnp.zeros((1, c.widths[-1])))
            Dense(c.widths[-1], CLASSES, name="head")(jnp.zeros((1, c.widths[-1])))
        return maps


def layers(config: TinyViTConfig) -> tuple[str, ...]:
    """Returns the layers: the patch embedding, and each block, the last of a stage with what follows it."""
    found = [r"^patch_embed"]
    for stage, depth in enumerate(config.depths):
        found += [rf"^layers_{stage}/blocks_{block}/" for block in range(depth)]
        found[-1] = rf"^layers_{stage}/(blocks_{depth - 1}/|downsample/)"
    return tuple(found)


def flops(config: TinyViTConfig) -> float:
    """Returns the operations of convolutions and matrix products on one image. Windows count with their padding."""
    C, side = config.widths[0], config.image_size // 4
    products = (2 * side) ** 2 * 27 * (C // 2) + side**2 * 9 * (C // 2) * C
    for i, (C, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        if i == 0:
            hidden = int(C * config.expansion)
            products += depth * side**2 * hidden * (2 * C + 9)
        else:
            window = config.windows[i]
            attended = (-(-side // window) * window) ** 2
            products += depth * (attended * (4 * C * C + 2 * window**2 * C) + side**2 * C * 9)
            products += int(depth * side**2 * 2 * config.mlp_ratio * C * C)
        if i + 1 < len(config.widths):
            D, stride = config.widths[i + 1], STRIDES[i]
            products += side**2 * C * D + (side // stride) ** 2 * (9 * D + D * D)
            side //= stride
    return 2.0 * products


def _landmark(config: TinyViTConfig) -> Shape:
    return config.widths[0] // 2, 3, 3, 3


def _guess(shapes: Mapping[str, Shape]) -> TinyViTConfig:
    widths, depths, heads, windows = [], [], [], []
    for stage in range(4):
        numbers = [re.match(rf"layers\.{stage}\.blocks\.(\d+)\.", name) for name in shapes]
        depths.append(1 + max(int(number[1]) for number in numbers if number))
        first = "conv3.c.weight" if stage == 0 else "local_conv.c.weight"
        widths.append(shapes[f"layers.{stage}.blocks.0.{first}"][0])
        count, places = (1, 1) if stage == 0 else shapes[f"layers.{stage}.blocks.0.attn.attention_biases"]
        heads.append(count)
        windows.append(round(places**0.5))
    return TinyViTConfig(
        widths=tuple(widths),
        depths=tuple(depths),
        heads=tuple(heads),
        windows=tuple(windows),
        expansion=shapes["layers.0.blocks.0.conv1.c.weight"][0] / widths[0],
        mlp_ratio=shapes["layers.1.blocks.0.mlp.fc1.weight"][0] / widths[1],
    )


ENCODER = Encoder(
    config=TinyViTConfig,
    trunk=TinyViT,
    layers=layers,
    flops=flops,
    sizes={MOBILE_SAM.name: MOBILE_SAM},
    official=OfficialNames(
        rules=(
            (r"^patch_embed_seq_", "patch_embed/seq_"),
            (r"/bn/(mean|var)$", r"/bn/running_\1"),
        ),
        landmark="patch_embed.seq.0.c.weight",
        landmark_shape=_landmark,
        guess=_guess,
    ),
)
