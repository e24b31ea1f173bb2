"""Layers that the encoder and the decoder share. Parameters are float32; `dtype` is the dtype of the arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
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
