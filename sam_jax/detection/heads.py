"""Layers of the detector: feature pyramid, proposal head, box head and mask head. NHWC.

Names are detectron2's with digits joined by `_`; the norm of a convolution `x` is `x_norm`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from sam_jax.detection.config import ASPECT_RATIOS, BOX_BINS, DetectorConfig
from sam_jax.modeling.common import LayerNorm, einsum_float32, fan_in_uniform, gelu
from sam_jax.modeling.mask_decoder import Upconv

Initializer = nn.initializers.Initializer
RELU_CONV = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015


def normed_conv(
    x: Float[Array, "*batch h w C"],
    features: int,
    size: int,
    name: str,
    dtype: DTypeLike,
    init: Initializer = RELU_CONV,
) -> Float[Array, "*batch h w {features}"]:
    """Convolves without bias, then normalises channels, as two layers of the module that calls."""
    x = nn.Conv(features, (size, size), use_bias=False, dtype=dtype, kernel_init=init, name=name)(x)
    return LayerNorm(dtype=dtype, name=f"{name}_norm")(x)


def lay_out(x: Float[Array, "B h w *fours C"]) -> Float[Array, "B _ _ C"]:
    """Lays out the pixels that `Upconv` made in n steps: (B, h, w, 4, ..., C) becomes (B, 2^n h, 2^n w, C)."""
    B, h, w, *fours, C = x.shape
    n = len(fours)
    x = x.reshape(B, h, w, *[2] * (2 * n), C)
    rows, columns = [3 + 2 * i for i in range(n)], [4 + 2 * i for i in range(n)]
    return x.transpose(0, 1, *rows, 2, *columns, x.ndim - 1).reshape(B, h * 2**n, w * 2**n, C)


class FeaturePyramid(nn.Module):
    """Turns the encoder's last map into maps p2 to p6, with strides of 1/4, 1/2, 1, 2 and 4 times its own.

    Reference: Li et al. 2022, section 3 ("simple feature pyramid").
    """

    config: DetectorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> tuple[Float[Array, "B _ _ {self.config.channels}"], ...]:
        D, dtype = self.config.encoder.features, self.dtype
        quarter = Upconv(D, D // 2, dtype, name="simfp_2_0")(x)
        quarter = gelu(LayerNorm(dtype=dtype, name="simfp_2_1")(quarter))
        quarter = lay_out(Upconv(D // 2, D // 4, dtype, name="simfp_2_3")(quarter))
        half = lay_out(Upconv(D, D // 2, dtype, name="simfp_3_0")(x))
        double = nn.max_pool(x, (2, 2), (2, 2))
        # The numbers are the layers' places in the official sequences, where activations and pooling count too.
        p2, p3, p4, p5 = (self._project(*given) for given in ((quarter, 2, 4), (half, 3, 1), (x, 4, 0), (double, 5, 1)))
        return p2, p3, p4, p5, p5[:, ::2, ::2]

    def _project(
        self, x: Float[Array, "B h w C"], level: int, place: int
    ) -> Float[Array, "B h w {self.config.channels}"]:
        C = self.config.channels
        for size, i in ((1, place), (3, place + 1)):
            init = fan_in_uniform(size * size * x.shape[-1])
            x = normed_conv(x, C, size, f"simfp_{level}_{i}", self.dtype, init)
        return x


class ProposalHead(nn.Module):
    """Predicts objectness logits and deltas of the n = h * w * A anchors of a map."""

    config: DetectorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> tuple[Float32[Array, "B n"], Float32[Array, "B n 4"]]:
        B, A, init = x.shape[0], len(ASPECT_RATIOS), nn.initializers.normal(0.01)
        for i in range(2):
            x = nn.Conv(self.config.channels, (3, 3), dtype=self.dtype, kernel_init=init, name=f"conv_conv{i}")(x)
            x = nn.relu(x)
        logits = nn.Conv(A, (1, 1), dtype=self.dtype, kernel_init=init, name="objectness_logits")(x)
        deltas = nn.Conv(4 * A, (1, 1), dtype=self.dtype, kernel_init=init, name="anchor_deltas")(x)
        return logits.reshape(B, -1).astype(jnp.float32), deltas.reshape(B, -1, 4).astype(jnp.float32)


class BoxHead(nn.Module):
    """Predicts class logits, the background last, and deltas of pooled boxes.

    G is the number of classes for which a box is moved.
    """

    config: DetectorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch bins bins C"]
    ) -> tuple[Float32[Array, "*batch {self.config.num_classes}+1"], Float32[Array, "*batch G 4"]]:
        c, dtype = self.config, self.dtype
        for i in range(1, c.convolutions + 1):
            x = nn.relu(normed_conv(x, c.channels, 3, f"conv{i}", dtype))
        uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        full = nn.DenseGeneral(c.fc_dim, axis=(-3, -2, -1), dtype=dtype, kernel_init=uniform, name="fc1")
        assert x.shape[-3:-1] == (BOX_BINS, BOX_BINS)
        x = nn.relu(full(x))
        scores = nn.Dense(c.num_classes + 1, dtype=dtype, kernel_init=nn.initializers.normal(0.01), name="cls_score")
        moves = nn.Dense(4 * c.box_classes, dtype=dtype, kernel_init=nn.initializers.normal(0.001), name="bbox_pred")
        deltas = moves(x).reshape(*x.shape[:-1], c.box_classes, 4)
        return scores(x).astype(jnp.float32), deltas.astype(jnp.float32)


class ClassProduct(nn.Module):
    """Convolves 1 x 1, and computes only one output of each map, that of its class.

    For all 1203 classes of LVIS the masks of an image would take a gigabyte.
    """

    classes: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "N *grid C"], of: Int[Array, " N"]) -> Float32[Array, " N *grid"]:
        init = nn.initializers.normal(0.001)
        kernel = self.param("kernel", init, (1, 1, x.shape[-1], self.classes))[0, 0].T[of]
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))[of]
        return einsum_float32("n...c,nc->n...", x, kernel.astype(self.dtype)) + jnp.expand_dims(
            bias, range(1, x.ndim - 1)
        )


class MaskHead(nn.Module):
    """Predicts the logits of a mask in each pooled box, of the box's class."""

    config: DetectorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B R bins bins C"], classes: Int[Array, "B R"]
    ) -> Float32[Array, "B R 2*bins 2*bins"]:
        c, dtype = self.config, self.dtype
        B, R, h, w = x.shape[:4]
        x = x.reshape(B * R, h, w, -1)
        for i in range(1, c.convolutions + 1):
            x = nn.relu(normed_conv(x, c.channels, 3, f"mask_fcn{i}", dtype))
        x = nn.relu(Upconv(c.channels, c.channels, dtype, name="deconv")(x))
        logits = ClassProduct(c.num_classes, dtype, name="predictor")(x, classes.reshape(-1))
        return lay_out(logits[..., None]).reshape(B, R, 2 * h, 2 * w)
