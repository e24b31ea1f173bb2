"""What a traced function multiplies, and FLOPs and bytes of its Pallas kernels, read from the kernels themselves.

The TPU compiler knows nothing of a kernel's inside, and believes its author's `CostEstimate`, which is not looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

MXU_SHARE = 0.5  # of the peak rate of products, which a kernel is taken to reach


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel of a traced function."""

    name: str
    times: int  # that it is called
    flops: float  # of the matrix products of a call
    bytes: float  # of the blocks that a call copies from and to the main memory

    def seconds(self, peak_flops: float, memory_rate: float) -> float:
        """Time of a call on a chip of these peak rates: the slower of products, at half their peak, and memory."""
        return max(self.flops / (MXU_SHARE * peak_flops), self.bytes / memory_rate)


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yields all equations of a traced function and how often each runs: in a loop or a kernel's grid as it turns.

    Of a `cond` it takes the branch for TPUs, or the last: in a kernel that is what `pl.when` guards.
    """
    for equation in jaxpr.eqns:
        yield equation, times
        name, params = equation.primitive.name, equation.params
        if name == "cond":
            yield from equations(params["branches"][_branch(params.get("branches_platforms"))].jaxpr, times)
            continue
        turns = params["length"] if name == "scan" else 1
        turns = math.prod(params["grid_mapping"].grid) if name == "pallas_call" else turns
        for inner in params.values():
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                yield from equations(getattr(inner, "jaxpr", inner), times * turns)


def _branch(platforms: tuple[tuple[str, ...] | None, ...] | None) -> int:
    return next((i for i, names in enumerate(platforms or ()) if names and "tpu" in names), -1)


def product_flops(jaxpr: Any) -> float:
    """FLOPs of all matrix products and convolutions of a traced function, loops as often as they turn."""
    total = 0.0
    for equation, times in equations(jaxpr):
        name, params = equation.primitive.name, equation.params
        output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2.0 * times * output * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, axis = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * times * output * math.prod(kernel) / kernel[axis]
    return total


def pallas_kernels(jaxpr: Any) -> list[Kernel]:
    """The Pallas kernels of a traced function."""
    found = []
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "pallas_call":
            mapping = equation.params["grid_mapping"]
            flops = math.prod(mapping.grid) * product_flops(equation.params["jaxpr"])
            moved = sum(_copies(block, mapping.grid) * _block_bytes(block) for block in mapping.block_mappings)
            found.append(Kernel(str(equation.params["name"]), times, flops, moved))
    return found


def _block_bytes(block: Any) -> float:
    return math.prod(block.block_aval.shape) * jnp.dtype(block.array_aval.dtype).itemsize


def _copies(block: Any, grid: tuple[int, ...]) -> int:
    """How often a block is copied: at every step of the grid whose block is not that of the step before."""
    steps = math.prod(grid)
    index_map = block.index_map_jaxpr
    if len(index_map.in_avals) != len(grid):  # by numbers that are known at run time alone
        return steps
    indices = jnp.stack(jnp.unravel_index(jnp.arange(steps), grid), -1).astype(jnp.int32) if grid else None
    if indices is None:
        return 1

    def index_of(step: Any) -> Any:
        return jnp.stack([jnp.asarray(i, jnp.int32) for i in core.jaxpr_as_fun(index_map)(*step)])

    blocks = jax.vmap(index_of)(indices)
    return 1 + int((blocks[1:] != blocks[:-1]).any(-1).sum())
