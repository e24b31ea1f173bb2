"""EfficientNet-Lite, pre-trained on ImageNet, with attention on its coarsest map and a fusion of its maps.

The network (`backbone`) is the published one, without its classifier: convolutions, batch norms whose statistics stay
as they are, ReLU6, no squeeze-and-excitation. The rest (`fusion`) is ours and brings its maps of stride 8, 16 and 32
together at stride 16. It is light enough for a CPU, and a frozen backbone's maps can be computed once for a whole
training.

Reference: Tan and Le 2019 (EfficientNet); the Lite variants of tensorflow/tpu, which drop what mobile hardware lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sam_jax.config import SMALL, EfficientNetLiteConfig
from sam_jax.modeling.common import (
    Dense,
    DepthwiseConv,
    FrozenBatchNorm,
    LayerNorm,
    MlpBlock,
    PatchConv,
    fan_in_uniform,
    gelu,
    multiply,
    repeat_pixels,
)
from sam_jax.modeling.encoders.base import Encoder, EncoderPart, Pretraining, Trunk
from sam_jax.modeling.encoders.vit import ViTBlock
from sam_jax.types import Params

EPSILON = 1e-3  # of the batch norms
# Of the seven stages: side of the depthwise kernels, stride of the first block, width in a block / width before it.
KERNELS, STRIDES, EXPANSIONS = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)
STEM = 32  # channels of the first convolution, in all variants


class PointwiseConv(nn.Module):
    """Convolves 1 x 1 without a bias."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch {self.features}"]:
        shape = (x.shape[-1], self.features)
        return multiply(x, self.param("kernel", fan_in_uniform(shape[0]), shape).astype(self.dtype))


class InvertedBottleneck(nn.Module):
    """Widens by a 1 x 1 convolution, convolves depthwise, and narrows again; adds its input where shapes allow it."""

    features: int
    expansion: int
    kernel: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ {self.features}"]:
        def norm(name: str) -> FrozenBatchNorm:
            return FrozenBatchNorm(EPSILON, self.dtype, name=name)

        y = x
        if self.expansion != 1:
            y = PointwiseConv(self.expansion * x.shape[-1], self.dtype, name="expand")(y)
            y = nn.relu6(norm("expand_norm")(y))
        y = DepthwiseConv(self.kernel, self.stride, self.dtype, name="depthwise")(y)
        y = nn.relu6(norm("depthwise_norm")(y))
        y = norm("project_norm")(PointwiseConv(self.features, self.dtype, name="project")(y))
        return x + y if x.shape == y.shape else y


class Backbone(nn.Module):
    """The published network. Its maps are the last of each size, "stride_2" to "stride_32"."""

    config: EfficientNetLiteConfig
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(self, images: Float[Array, "B S S 3"]) -> dict[str, Float[Array, "B _ _ _"]]:
        stem = nn.Conv(STEM, (3, 3), (2, 2), "SAME", use_bias=False, dtype=self.dtype, name="stem")
        x = nn.relu6(FrozenBatchNorm(EPSILON, self.dtype, name="stem_norm")(stem(images.astype(self.dtype))))
        block_class = nn.remat(InvertedBottleneck) if self.remat else InvertedBottleneck
        stride, maps = 2, {}
        for i, (features, expansion, kernel, step) in enumerate(_blocks(self.config)):
            x = block_class(features, expansion, kernel, step, self.dtype, name=f"blocks_{i}")(x)
            stride *= step
            maps[f"stride_{stride}"] = x
        return maps


class FusionBlock(nn.Module):
    """ConvNeXt's block: a depthwise 7 x 7 convolution, and an MLP at each pixel (Liu et al. 2022)."""

    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w {self.dim}"]) -> Float[Array, "B h w {self.dim}"]:
        y = DepthwiseConv(7, 1, self.dtype, name="depthwise")(x)
        y = LayerNorm(dtype=self.dtype, name="norm")(y)
        return x + MlpBlock(self.dim, 2 * self.dim, gelu, self.dtype, name="mlp")(y)


class Fusion(nn.Module):
    """Fuses maps of stride 8, 16 and 32 into one of stride 16, after attention over the whole image at stride 32."""

    config: EfficientNetLiteConfig
    dtype: DTypeLike
    drop_path: float

    @nn.compact
    def __call__(
        self, maps: dict[str, Float[Array, "B _ _ _"]], deterministic: bool
    ) -> Float[Array, "B h w {self.config.dim}"]:
        c = self.config
        fine, middle, coarse = (maps[f"stride_{stride}"].astype(self.dtype) for stride in (8, 16, 32))

        def lateral(x: Array, dim: int, name: str) -> Array:
            return LayerNorm(dtype=self.dtype, name=f"{name}_norm")(Dense(x.shape[-1], dim, self.dtype, name=name)(x))

        x = lateral(coarse, c.attention_dim, "coarse")
        for i in range(c.attention_depth):
            x = ViTBlock(
                heads=c.attention_heads,
                mlp_dim=2 * c.attention_dim,
                window=0,
                drop_path=self.drop_path,
                dtype=self.dtype,
                name=f"attention_{i}",
            )(x, deterministic)
        x = repeat_pixels(Dense(c.attention_dim, c.dim, self.dtype, name="upward")(x), 2)
        x = x + lateral(middle, c.dim, "middle")
        x = x + PatchConv(fine.shape[-1], c.dim, 2, self.dtype, name="fine")(fine)
        for i in range(c.fusion_depth):
            x = FusionBlock(c.dim, self.dtype, name=f"blocks_{i}")(x)
        return x


class EfficientNetLite(Trunk[EfficientNetLiteConfig]):
    """The backbone and the fusion. The maps are those of the backbone, and "last" of stride 16."""

    def setup(self) -> None:
        self.backbone = Backbone(self.config, self.dtype, self.remat)
        self.fusion = Fusion(self.config, self.dtype, self.drop_path)

    def __call__(
        self, images: Float[Array, "B S S 3"], deterministic: bool = True
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        return self.finish(self.backbone(images), deterministic)

    def finish(
        self, maps: dict[str, Float[Array, "B _ _ _"]], deterministic: bool = True
    ) -> dict[str, Float[Array, "B _ _ _"]]:
        return maps | {"last": self.fusion(maps, deterministic)}


def _blocks(config: EfficientNetLiteConfig) -> Iterator[tuple[int, int, int, int]]:
    """Yields features, expansion, kernel and stride of each block."""
    for stage, (features, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for i in range(depth):
            yield features, EXPANSIONS[stage], KERNELS[stage], STRIDES[stage] if i == 0 else 1


def layers(config: EfficientNetLiteConfig) -> tuple[str, ...]:
    """Returns the layers: the stem, and each block of the backbone; the fusion comes after them."""
    blocks = range(sum(config.depths))
    return (r"^backbone/stem", *(rf"^backbone/blocks_{i}/" for i in blocks))


def flops(config: EfficientNetLiteConfig) -> float:
    """Returns the operations of all convolutions and matrix products on one image."""
    side = config.image_size // 2
    products, channels = side**2 * 27 * STEM, STEM
    for features, expansion, kernel, stride in _blocks(config):
        width = expansion * channels
        products += side**2 * channels * width * (expansion != 1)
        side //= stride
        products += side**2 * width * (kernel**2 + features)
        channels = features
    D, tokens = config.attention_dim, side**2
    products += tokens * (channels * D + D * config.dim)
    products += config.attention_depth * tokens * (8 * D**2 + 2 * tokens * D + 4 * side * D)
    cells, C = config.grid_size**2, config.dim
    products += cells * C * (config.widths[4] + 4 * config.widths[2])
    products += config.fusion_depth * cells * C * (49 + 4 * C)
    return 2.0 * products


def resize(params: Params, old: EfficientNetLiteConfig, new: EfficientNetLiteConfig) -> Params:
    """Interpolates the relative positions of the attention at stride 32."""
    length = 2 * (new.image_size // 32) - 1

    def one(path: tuple, value: Array) -> Array:
        if path[-1].key not in ("rel_pos_h", "rel_pos_w"):
            return value
        return jax.image.resize(value, (length, value.shape[1]), "linear", antialias=False)

    return jax.tree_util.tree_map_with_path(one, params)


def _from_imagenet(name: str, value: np.ndarray, config: EfficientNetLiteConfig) -> np.ndarray:
    """Turns (out, in, h, w) into (h, w, in, out), and 1 x 1 kernels into matrices (in, out)."""
    if value.ndim != 4:
        return value
    value = value.transpose(2, 3, 1, 0)
    return value[0, 0] if value.shape[:2] == (1, 1) else value


def _norm_names(match: re.Match) -> str:
    """Returns the number of a norm there: the first block, which does not expand, has no norm 0."""
    return f"/_bn{('expand', 'depthwise', 'project').index(match[1])}/"


IMAGENET = Pretraining(
    what="an EfficientNet-Lite of efficientnet_lite_pytorch",
    rules=(
        (r"^backbone/stem/", "_conv_stem/"),
        (r"^backbone/stem_norm/", "_bn0/"),
        (r"^backbone/blocks_", "_blocks_"),
        (r"/(expand|depthwise|project)_norm/", _norm_names),
        (r"/(expand|depthwise|project)/", r"/_\1_conv/"),
        (r"/(mean|var)$", r"/running_\1"),
    ),
    landmarks=("_conv_stem.weight", "_blocks.0._depthwise_conv.weight"),
    unused=r"^(_conv_head\.|_bn1\.|_fc\.|.*\.num_batches_tracked$)",
    kept=r"^fusion/",
    convert=_from_imagenet,
)

ENCODER = Encoder(
    config=EfficientNetLiteConfig,
    trunk=EfficientNetLite,
    layers=layers,
    flops=flops,
    resize=resize,
    sizes={SMALL.name: SMALL},
    pretraining=IMAGENET,
    first_part=EncoderPart(r"^backbone/", ("stride_8", "stride_16", "stride_32")),
)
