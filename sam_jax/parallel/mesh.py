"""Device meshes, and how arrays are sharded over them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sam_jax.errors import UserError

Tree = TypeVar("Tree")

LONGEST = "longest"
# How params are sharded by their names; the first rule that matches holds. Small ones are not worth a message each.
RULES: tuple[tuple[str, PartitionSpec | str], ...] = (
    # Every round of prompts uses the decoder: sharded, its 4 million params would be sent again for each.
    (r"\b(prompt_encoder|mask_decoder)/", PartitionSpec()),
    (r"(bias|scale|mean|var)$", PartitionSpec()),
    (r"", LONGEST),  # along the longest axis that `fsdp` divides; those without one are replicated
)


def make_mesh(data: int, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with axes `data` (images) and `fsdp` (images and params) of the first `data * fsdp` devices.

    Args:
        devices: those to choose from; None: all. Devices of a topology serve to compile for it.

    Raises:
        ValueError: there are fewer devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data * fsdp > len(devices):
        raise UserError(f"a mesh of {data} x {fsdp} needs {data * fsdp} devices, there are {len(devices)}")
    # Auto: the compiler places what is not annotated. The default, Explicit, would put it into the types.
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), (AxisType.Auto, AxisType.Auto), devices=devices[: data * fsdp])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: images over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Shards every array of a pytree along its first axis over all devices of the mesh.

    Args:
        batch: this process's part of the global batch, which is all of it if there is one process.
    """
    sharding = batch_sharding(mesh)
    # Of several processes JAX takes this transfer for one that nobody asked for.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def param_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec | str]] = RULES) -> Any:
    """Returns the shardings of params, or of a tree that has arrays under the same names, such as optimizer state.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`.
        rules: regular expressions, searched in names like image_encoder/blocks_0/attn/qkv/kernel.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path)
        spec = next(spec for pattern, spec in rules if re.search(pattern, name))
        if spec == LONGEST:
            axes = [axis for axis in np.argsort(leaf.shape) if leaf.shape[axis] % mesh.shape["fsdp"] == 0]
            entries: list[str | None] = [None] * len(leaf.shape)
            if axes:
                entries[axes[-1]] = "fsdp"
            spec = PartitionSpec(*entries)
        assert isinstance(spec, PartitionSpec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)
