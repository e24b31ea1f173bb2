"""Device meshes and where arrays lie on them."""

from __future__ import annotations

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sam_jax.types import Params

Tree = TypeVar("Tree")


def make_mesh(data: int, fsdp: int = 1) -> Mesh:
    """A mesh with axes `data` (pictures) and `fsdp` (params), over the first `data * fsdp` devices.

    Raises:
        ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if data * fsdp > len(devices):
        raise ValueError(f"a mesh of {data} x {fsdp} needs {data * fsdp} devices, there are {len(devices)}")
    # Auto: the compiler places what is not annotated. The default, Explicit, would put it into the types.
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices[: data * fsdp])


def shard_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Cuts every array of a pytree along its first axis over all devices of the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def shard_params(params: Params, mesh: Mesh) -> Params:
    """Cuts each param along its longest axis that `fsdp` divides; those without one lie whole on every device."""

    def place(param: jax.Array) -> jax.Array:
        axes = [axis for axis in np.argsort(param.shape) if param.shape[axis] % mesh.shape["fsdp"] == 0]
        spec: list[str | None] = [None] * param.ndim
        if axes:
            spec[axes[-1]] = "fsdp"
        return jax.device_put(param, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(place, params)
