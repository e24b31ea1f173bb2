"""Runs a training step on many devices, of one process or of several: as one program over a mesh, or with pmap."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array

from sam_jax.config import ParallelConfig
from sam_jax.errors import UserError
from sam_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings, shard_batch

AXIS = "devices"


class Wrapped(NamedTuple):
    """A run's functions on its devices.

    State stays on the devices; batches come from the host, from each process its part. All transfers between host and
    devices are explicit, so that a step runs under `jax.transfer_guard("disallow")`, given a replicated key.
    """

    devices: int  # of all processes
    template: Any  # shapes and shardings of a state, which a checkpoint is restored into
    init: Callable[[Any], Any]  # params of a whole model -> placed state, which is on the devices
    place: Callable[[Any], Any]  # a restored state onto the devices
    replicate: Callable[[Array], Array]  # a key, the same in all processes, onto all devices
    whole: Callable[[Any], Any]  # a placed state as one array each, for checkpoints and export
    step: Callable[[Any, Any, jax.Array], tuple[Any, Any]]  # (placed state, batch, key) -> the same; frees the old one
    evaluate: Callable[[Any, Any, jax.Array], Any]  # (placed state, batch, key) -> metrics
    preview: Callable[[Any, Any, jax.Array], Any]  # (placed state, a few images, the same in all processes, key)


def wrap(
    init: Callable,
    step: Callable,
    evaluate: Callable,
    preview: Callable,
    params: Any,
    config: ParallelConfig,
    batch_size: int,
) -> Wrapped:
    """Spreads a run's functions over devices.

    Args:
        init: params -> state.
        step: (state, batch, key, axis_name) -> (state, metrics), of one device's part of the batch if axis_name is
            given, else of the global batch.
        evaluate: (state, batch, key, axis_name) -> metrics, likewise.
        preview: (state, batch, key) -> arrays, for any number of images.
        params: of the model, or their shapes.
        batch_size: images that all devices together work on at a time.

    Raises:
        ValueError: more devices than there are, or a batch that they do not divide.
    """
    data = config.data or max(1, jax.device_count() // config.fsdp)
    count = data * config.fsdp
    if batch_size % count:
        raise UserError(
            f"expected a batch that {count} devices divide, got {batch_size} images at a time; "
            "change data.batch_size, accumulate, parallel.data or parallel.fsdp"
        )
    if config.mode == "pmap":
        if config.fsdp != 1:
            raise UserError(f"pmap keeps a copy of the state on each device; expected fsdp 1, got {config.fsdp}")
        return _with_pmap(init, step, evaluate, preview, params, data)
    return _over_mesh(init, step, evaluate, preview, params, data, config.fsdp)


def jit_step(step: Callable, state: Any, mesh: Mesh) -> Any:
    """Compiles `step`, as `wrap` takes it, to one program over a mesh, which frees the state that it is given.

    Args:
        state: of the run, or its shapes.
    """
    of_state = param_shardings(state, mesh)
    return jax.jit(
        functools.partial(step, axis_name=None),
        in_shardings=(of_state, batch_sharding(mesh), None),
        out_shardings=(of_state, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def _over_mesh(
    init: Callable, step: Callable, evaluate: Callable, preview: Callable, params: Any, data: int, fsdp: int
) -> Wrapped:
    mesh = make_mesh(data, fsdp)
    shapes = jax.eval_shape(init, params)
    of_params, of_state = param_shardings(params, mesh), param_shardings(shapes, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    run_init = jax.jit(init, in_shardings=(of_params,), out_shardings=of_state)
    run_step = jit_step(step, shapes, mesh)
    run_evaluate = jax.jit(functools.partial(evaluate, axis_name=None), out_shardings=everywhere)
    return Wrapped(
        devices=data * fsdp,
        template=jax.tree.map(_shape, shapes, of_state),
        init=lambda params: run_init(jax.device_put(params, of_params)),
        place=lambda state: state,
        replicate=lambda key: _replicate(key, mesh),
        whole=lambda state: state,
        step=lambda state, batch, key: run_step(state, shard_batch(batch, mesh), key),
        evaluate=lambda state, batch, key: run_evaluate(state, shard_batch(batch, mesh), key),
        preview=jax.jit(preview, out_shardings=everywhere),
    )


def _with_pmap(
    init: Callable, step: Callable, evaluate: Callable, preview: Callable, params: Any, count: int
) -> Wrapped:
    devices = jax.devices()
    if count > len(devices):
        raise UserError(f"expected at most {len(devices)} devices, got parallel.data {count}")
    devices = devices[:count]
    own = [device for device in devices if device.process_index == jax.process_index()]
    pmap = functools.partial(jax.pmap, axis_name=AXIS, devices=devices)

    def step_with_key_data(state: Any, batch: Any, data: Array) -> tuple[Any, Any]:
        # Of several processes pmap sends a key by way of the host, and its data not.
        return step(state, batch, jax.random.wrap_key_data(data), axis_name=AXIS)

    run_step = pmap(step_with_key_data, in_axes=(0, 0, None), donate_argnums=0)
    run_evaluate = pmap(functools.partial(evaluate, axis_name=AXIS), in_axes=(0, 0, None))
    run_preview = jax.jit(preview)
    copy = pmap(lambda _, state: state, in_axes=(0, None))
    own_mesh = Mesh(np.array(own), (AXIS,))
    cut_by_device = NamedSharding(own_mesh, PartitionSpec(AXIS))

    def place(state: Any) -> Any:
        return copy(np.zeros(len(own)), state)

    def cut(batch: Any) -> Any:
        return jax.tree.map(lambda x: jax.device_put(x.reshape(len(own), -1, *x.shape[1:]), cut_by_device), batch)

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def run(state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        state, metrics = run_step(state, cut(batch), jax.random.key_data(key))
        return state, first(metrics)

    local = SingleDeviceSharding(own[0])
    return Wrapped(
        devices=count,
        template=jax.tree.map(lambda leaf: _shape(leaf, local), jax.eval_shape(init, params)),
        init=lambda params: place(jax.jit(init, out_shardings=local)(params)),
        place=place,
        replicate=lambda key: _replicate(key, own_mesh),
        whole=lambda state: jax.device_get(first(state)),
        step=run,
        evaluate=lambda state, batch, key: first(run_evaluate(state, cut(batch), key)),
        preview=lambda state, batch, key: run_preview(first(state), batch, key),
    )


def _replicate(key: Array, mesh: Mesh) -> Array:
    """Copies a key to all devices of a mesh, from each process its own: nothing is sent between them."""
    sharding, data = NamedSharding(mesh, PartitionSpec()), np.asarray(jax.random.key_data(key))
    placed = jax.make_array_from_callback(data.shape, sharding, data.__getitem__)
    return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(key))


def _shape(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
