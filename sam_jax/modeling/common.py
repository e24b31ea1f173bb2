"""Layers that the encoder and the decoder share. Parameters are float32; `dtype` is the dtype of the arithmetic."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Key

from sam_jax.types import AnyArray, Params


def apply(module: nn.Module, params: Params, *args: Any, **kwargs: Any) -> Any:
    """Calls a module with these params; others beside them are not looked at."""
    return module.apply({"params": params}, *args, **kwargs)


def fan_in_uniform(fan_in: int) -> Callable:
    """Returns PyTorch's default initializer of weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def multiply(x: Float[Array, "*batch C"], kernel: Float[Array, "C D"]) -> Float[Array, "*batch D"]:
    """Computes `x @ kernel` as the product of two matrices.

    With the leading axes apart, the gradient of the kernel sums over several axes: XLA's slow way on a CPU.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """Computes `x @ kernel + bias`."""

    in_features: int
    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        init = fan_in_uniform(self.in_features)
        self.kernel = self.param("kernel", init, (self.in_features, self.features))
        self.bias = self.param("bias", init, (self.features,))

    def weights(
        self,
    ) -> tuple[Float[Array, "{self.in_features} {self.features}"], Float[Array, " {self.features}"]]:
        """Returns kernel and bias in `dtype`, for code that folds them into other products."""
        return self.kernel.astype(self.dtype), self.bias.astype(self.dtype)

    def __call__(self, x: Float[Array, "*batch {self.in_features}"]) -> Float[Array, "*batch {self.features}"]:
        kernel, bias = self.weights()
        return multiply(x.astype(self.dtype), kernel) + bias


class LayerNorm(nn.Module):
    """Normalises the last axis, in float32, with the two-pass variance (the one-pass form loses digits).

    In NHWC this is also the official LayerNorm2d.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch norm with the statistics of an earlier training, which are params and do not learn; scale and bias do.

    In float32 over the last axis. Training keeps params of these names as they are (`sam_jax.training.trainable`), and
    no gradient reaches them.
    """

    epsilon: float = 1e-5  # PyTorch's default
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, var = (self.param(name, ones, x.shape[-1:]) for name in ("scale", "var"))
        bias, mean = (self.param(name, zeros, x.shape[-1:]) for name in ("bias", "mean"))
        var, mean = jax.lax.stop_gradient((var, mean))
        scale = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * scale + (bias - mean * scale)).astype(self.dtype)


def shifts(x: Float[Array, "B h w C"], kernel: int, stride: int) -> Iterator[Float[Array, "B _ _ C"]]:
    """Yields what a convolution with padding "SAME" multiplies by each weight of its kernel, in reading order."""
    (H, W), pads = x.shape[1:3], same_padding(x.shape[1:3], kernel, stride)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    for i, j in itertools.product(range(kernel), repeat=2):
        yield x[:, i : i + H - (H - 1) % stride : stride, j : j + W - (W - 1) % stride : stride]


def same_padding(size: Sequence[int], kernel: int, stride: int) -> list[tuple[int, int]]:
    """Returns the pixels before and after each axis with which TensorFlow's padding "SAME" fills up."""
    totals = [max((-(-length // stride) - 1) * stride + kernel - length, 0) for length in size]
    return [(total // 2, total - total // 2) for total in totals]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_by_shifts(
    x: Float[Array, "B h w C"], kernel: Float[Array, "k k 1 C"], stride: int
) -> Float[Array, "B _ _ C"]:
    """Convolves each channel by itself, as a sum of shifted products: on a CPU, XLA's own way takes ten times as long.

    Its gradient is written out: the one that JAX derives for the kernel takes XLA on a CPU five times as long.
    """
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(part * weight for part, weight in zip(shifts(x, len(kernel), stride), weights, strict=True))


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_by_shifts(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    k, C = len(kernel), x.shape[-1]
    pads = same_padding(x.shape[1:3], k, stride)
    # The gradient of x: spread out by the stride, padded so that a plain sum of shifts gives x's size.
    spread = [
        (k - 1 - low, length - k + low - stride * (n - 1) + k - 1, stride - 1)
        for (low, _), length, n in zip(pads, x.shape[1:3], gradient.shape[1:3], strict=True)
    ]
    zero = jnp.zeros((), gradient.dtype)
    padded = jax.lax.pad(gradient, zero, ((0, 0, 0), *spread, (0, 0, 0)))
    H, W = x.shape[1:3]
    dx = jnp.zeros((), gradient.dtype)
    for i, j in itertools.product(range(k), repeat=2):
        dx = dx + padded[:, i : i + H, j : j + W] * kernel[k - 1 - i, k - 1 - j, 0]
    # The gradient of the kernel: one weight after the other, each a sum of products over all pixels.
    x, flat = jnp.pad(x, ((0, 0), *pads, (0, 0))), gradient.reshape(-1, C)
    B, h, w, _ = gradient.shape

    def one(_: None, tap: Array) -> tuple[None, Array]:
        size = (B, (h - 1) * stride + 1, (w - 1) * stride + 1, C)
        part = jax.lax.dynamic_slice(x, (0, tap // k, tap % k, 0), size)[:, ::stride, ::stride]
        return None, jnp.einsum("nc,nc->c", part.reshape(-1, C), flat)

    _, weights = jax.lax.scan(one, None, jnp.arange(k * k))
    return dx, weights.reshape(kernel.shape)


depthwise_by_shifts.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv(nn.Module):
    """Convolves each channel by itself, padded as TensorFlow's "SAME", without a bias. The kernel is (k, k, 1, C)."""

    kernel: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B _ _ C"]:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        kernel = self.param("kernel", fan_in_uniform(self.kernel**2), shape).astype(self.dtype)

        def convolve(x: Array, kernel: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.stride, self.stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[-1],
            )

        by_shifts = functools.partial(depthwise_by_shifts, stride=self.stride)
        return jax.lax.platform_dependent(x.astype(self.dtype), kernel, cpu=by_shifts, default=convolve)


def repeat_pixels(x: Float[Array, "B h w C"], factor: int) -> Float[Array, "B {factor}*h {factor}*w C"]:
    """Enlarges maps: each pixel becomes `factor` x `factor` equal ones."""
    B, h, w, C = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (B, h, factor, w, factor, C))
    return x.reshape(B, h * factor, w * factor, C)


class PatchConv(nn.Module):
    """Convolves with a stride of the kernel's size, as one matmul over patches. The kernel is (p, p, in, out)."""

    in_features: int
    features: int
    patch: int
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "*batch H W {self.in_features}"]
    ) -> Float[Array, "*batch H//{self.patch} W//{self.patch} {self.features}"]:
        p, c = self.patch, self.in_features
        init = fan_in_uniform(p * p * c)
        kernel = self.param("kernel", init, (p, p, c, self.features)).astype(self.dtype)
        *lead, height, width, _ = x.shape
        x = x.astype(self.dtype).reshape(*lead, height // p, p, width // p, p, c)
        x = jnp.moveaxis(x, -4, -3).reshape(*lead, height // p, width // p, p * p * c)
        x = multiply(x, kernel.reshape(p * p * c, self.features))
        return x + self.param("bias", init, (self.features,)).astype(self.dtype) if self.use_bias else x


class MlpHead(nn.Module):
    """Applies linear layers with ReLU between them; used by the IoU head and the hypernetworks."""

    in_features: int
    hidden: int
    features: int
    depth: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch {self.in_features}"]) -> Float[Array, "*batch {self.features}"]:
        widths = [self.in_features] + [self.hidden] * (self.depth - 1) + [self.features]
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            x = Dense(fan_in, fan_out, self.dtype, name=f"layers_{i}")(x)
            if i < self.depth - 1:
                x = nn.relu(x)
        return x


class MlpBlock(nn.Module):
    """Applies the two-layer feed-forward network of a transformer block."""

    dim: int
    hidden: int
    activation: Callable[[Array], Array]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch {self.dim}"]) -> Float[Array, "*batch {self.dim}"]:
        x = self.activation(Dense(self.dim, self.hidden, self.dtype, name="lin1")(x))
        return Dense(self.hidden, self.dim, self.dtype, name="lin2")(x)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the exact (erf) GELU; the tanh form differs by up to 4e-4.

    Written with erf and not, as in `nn.gelu`, with erfc, which takes three times as long on a CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def einsum_float32(spec: str, *arrays: Float[Array, "..."]) -> Float32[Array, "..."]:
    """Computes `jnp.einsum` with accumulation in float32, and returns that, whatever the dtype of the operands.

    On a CPU, XLA lacks some of the products bfloat16 x bfloat16 -> float32; there the operands are widened first.
    """

    def mixed(*arrays: Array) -> Array:
        return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)

    def widened(*arrays: Array) -> Array:
        return jnp.einsum(spec, *(array.astype(jnp.float32) for array in arrays))

    if all(array.dtype == jnp.float32 for array in arrays):
        return mixed(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=widened, default=mixed)


class DropPath(nn.Module):
    """Drops a residual branch of a whole example with probability `rate` (stochastic depth, Huang et al. 2016)."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, " B *rest"], deterministic: bool) -> Float[Array, " B *rest"]:
        if deterministic or self.rate == 0.0:
            return x
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)
