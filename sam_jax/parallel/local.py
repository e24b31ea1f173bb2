"""Runs one function on every local device, each with its own images: as a program over a mesh, or with pmap."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sam_jax.errors import UserError

Tree = TypeVar("Tree")
Mode = Literal["mesh", "pmap"]


@dataclasses.dataclass(frozen=True)
class LocalDevices:
    """Devices that run the same function side by side and exchange nothing.

    Batches have a leading axis with one entry per device; params are replicated.
    """

    devices: tuple[jax.Device, ...]
    mode: Mode = "mesh"  # one `jit` program over a mesh, or `jax.pmap`; the results are the same

    def __post_init__(self) -> None:
        if self.mode not in ("mesh", "pmap"):
            raise UserError(f"expected mode 'mesh' or 'pmap', got {self.mode!r}")

    def __len__(self) -> int:
        return len(self.devices)

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), ("data",), axis_types=(AxisType.Auto,))

    def replicate(self, tree: Tree) -> Tree:
        """Copies params to every device."""
        if self.mode == "pmap":
            copy = jax.pmap(lambda _, x: x, in_axes=(0, None), devices=self.devices)
            return copy(np.zeros(len(self)), tree)
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def scatter(self, tree: Tree) -> Tree:
        """Moves each entry along the leading axis of arrays to its device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec("data")))

    def run_on_each(self, function: Callable) -> Callable:
        """Compiles a `function(params, *batch)` of one device for all of them; its results get the leading axis."""
        if self.mode == "pmap":
            return jax.pmap(function, devices=self.devices)

        def on_one(params: Any, *batch: Any) -> Any:
            result = function(params, *jax.tree.map(lambda x: x[0], batch))
            return jax.tree.map(lambda x: x[None], result)

        @jax.jit
        def on_mesh(params: Any, *batch: Any) -> Any:
            each = PartitionSpec("data")
            specs = (PartitionSpec(), *(each for _ in batch))
            return jax.shard_map(on_one, mesh=self._mesh, in_specs=specs, out_specs=each, check_vma=False)(
                params, *batch
            )

        return on_mesh

    def take(self, array: jax.Array, device: int, count: int) -> jax.Array:
        """Returns the first `count` rows of one device's entry, or some more, on that device.

        So only they are transferred to the host, and not the whole entry.
        """
        shard = next(s.data for s in array.addressable_shards if (s.index[0].start or 0) == device)
        # A power of two: each length is a program of its own.
        rows = min(1 << max(count - 1, 0).bit_length(), shard.shape[1])
        return shard[0, :rows]
