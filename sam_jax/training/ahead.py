"""Compiles the training step for TPUs that are not there, to know whether it fits before anyone pays for them.

The TPU compiler (`libtpu`, in `jax[tpu]`) compiles for a topology by its name, such as v5e:16x16, on any Linux machine.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.stages import Traced

from sam_jax.config import TrainConfig
from sam_jax.errors import MissingPackage, UserError
from sam_jax.modeling import init_params
from sam_jax.parallel.mesh import make_mesh
from sam_jax.parallel.wrap import jit_step
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import TrainState, init_state, train_step
from sam_jax.types import Batch

# The partitioner can cut products with gathered params into one piece per chip, to send and multiply by turns. Over
# dozens of chips that is dozens of small products and a program too large to compile; gathering whole is as good.
COMPILER_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU.

    Reference: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p}.
    """

    memory: int  # bytes
    megacore: bool = False  # two cores of a chip are one device, as Cloud TPU sets it up


CHIPS = {"v4": Chip(32 * GiB, megacore=True), "v5e": Chip(16 * GiB), "v5p": Chip(95 * GiB, megacore=True)}


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a topology like v5e:16x16.

    Raises:
        UserError: a chip that is not in CHIPS, or a shape that it is not built in.
        MissingPackage: there is no TPU compiler.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(f"expected a topology of {', '.join(CHIPS)}, like v5e:16x16, got {topology!r}")
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackage("the TPU compiler is missing; pip install 'sam_jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask
    jax.config.update("jax_platforms", "cpu")  # shapes alone are computed with
    options = {"chip_config_name": "megacore"} if CHIPS[kind].megacore else {}
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"expected a topology that exists, like v5e:16x16, got {topology!r} ({error})") from error


def batch_shapes(config: TrainConfig) -> Batch:
    """Returns the shapes of a global batch."""
    B, S, Q, L = config.data.batch_size, config.model.image_size, config.data.masks_per_image, config.loss.size
    shape = jax.ShapeDtypeStruct
    return Batch(
        images=shape((B, S, S, 3), jnp.uint8),
        sizes=shape((B, 2), jnp.int32),
        masks=shape((B, Q, L, L), jnp.bool_),
        boxes=shape((B, Q, 4), jnp.float32),
        valid=shape((B, Q), jnp.bool_),
    )


def trace_step(config: TrainConfig, devices: list[jax.Device]) -> tuple[Traced, TrainState, Batch]:
    """Traces a recipe's step over a mesh of devices, with shapes in place of arrays.

    Returns:
        what is to be lowered; the shapes of state and batch.

    Raises:
        UserError: the mesh or the batch cannot be divided so.
    """
    fsdp, count = config.parallel.fsdp, len(devices)
    if count % fsdp or config.data.batch_size % count:
        raise UserError(
            f"expected parallel.fsdp ({fsdp}) to divide the {count} chips, and these the batch of "
            f"{config.data.batch_size} images (--data.batch-size)"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    make = functools.partial(make_optimizer, config.optimizer, config.model.encoder)
    params = jax.eval_shape(functools.partial(init_params, config.model), key)
    state = jax.eval_shape(functools.partial(init_state, config=config, make_optimizer=make), params, key)
    step = functools.partial(train_step, config=config, optimizer=make(state.params))
    batch = batch_shapes(config)
    return jit_step(step, state, make_mesh(count // fsdp, fsdp, devices)).trace(state, batch, key), state, batch


def compile_only(config: TrainConfig, topology: str) -> str:
    """Compiles a config's training step for a topology; says what a chip holds of it.

    Raises:
        UserError: it does not fit, the topology does not exist, or the config has more than images and masks.
        MissingPackage: there is no TPU compiler.
    """
    if config.text.clip is not None or config.finetune.cache_embeddings or config.finetune.cache_views:
        raise UserError("--compile-only knows steps on images and masks: leave text.clip and caches of the encoder out")
    devices, chip = topology_devices(topology), CHIPS[topology.partition(":")[0]]
    traced, _, _ = trace_step(config, devices)
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile(compiler_options=COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the step does not fit into the {chip.memory / GiB:.0f} GiB of a chip of {topology}: with a larger "
            "--parallel.fsdp more chips share a state, a smaller --data.batch-size or --remat saves activations "
            f"({str(error)[:300]})"
        ) from error
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    # New outputs lie in the memory of the arguments that the step frees.
    peak = arguments + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (
        f"{topology}, {len(devices)} chips, {config.data.batch_size} images a step, fsdp {config.parallel.fsdp}: fits. "
        f"A chip holds {arguments / GiB:.2f} GiB of state and batch, and at most {peak / GiB:.2f} of its "
        f"{chip.memory / GiB:.0f} GiB (compiled in {time.perf_counter() - start:.0f} s)"
    )
