"""One training step is the same update on one device, over a mesh with sharded state, with pmap, and in parts."""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec

from cases.models import SMALL
from cases.processes import run_two
from cases.training import make_batch, make_config
from sam_jax.checkpoints import load_checkpoint, save_checkpoint
from sam_jax.config import ParallelConfig, PromptConfig
from sam_jax.modeling import init_params
from sam_jax.parallel.mesh import make_mesh, param_shardings
from sam_jax.parallel.start import detect_launcher, start_processes
from sam_jax.training.loop import compile_program
from sam_jax.training.sam import sam_task
from sam_jax.types import Batch

MODES = {
    "one": (ParallelConfig("mesh", 1, 1), 1),
    "mesh, data x fsdp": (ParallelConfig("mesh", 2, 4), 1),
    "mesh, in parts": (ParallelConfig("mesh", 2, 2), 2),
    "pmap": (ParallelConfig("pmap", 8), 1),
}
IN_PARTS = pytest.param("mesh, in parts", marks=pytest.mark.slow)


def run_key() -> jax.Array:  # no constant: processes must find each other before JAX is used
    return jax.random.key(1)


def parallel_config(mode: str):
    parallel, accumulate = MODES[mode]
    config = make_config(
        parallel=parallel, accumulate=accumulate, prompts=PromptConfig(point_rounds=2, refine_rounds=1)
    )
    # Adam divides by the gradient's size. Where that is rounding error, so would be the direction, but for an epsilon.
    optimizer = dataclasses.replace(config.optimizer, epsilon=1e-3, learning_rate=1e-2, warmup_steps=1)
    return dataclasses.replace(config, optimizer=optimizer, data=dataclasses.replace(config.data, batch_size=8))


def global_batch() -> Batch:
    """8 images with unequal numbers of masks, one with none."""
    parts = [make_batch(seed) for seed in range(4)]
    batch = Batch(*(None if fields[0] is None else np.concatenate(fields) for fields in zip(*parts, strict=True)))
    batch.valid[5] = False
    return batch


@pytest.fixture(scope="module")
def params():
    return init_params(SMALL, jax.random.key(0))


@pytest.fixture(scope="module")
def programs(params):
    """Compiled once for all tests."""
    return {mode: compile_program(sam_task(parallel_config(mode), params), params) for mode in MODES}


@pytest.fixture(scope="module")
def expected(programs, params):
    """Two updates, and the evaluation after the first, on one device."""
    return play(programs["one"], params)


def play(program, params):
    state, key = program.init(params), program.replicate(run_key())
    with jax.transfer_guard("disallow"):
        state, metrics = program.step(state, global_batch(), key)
    first = jax.device_get(program.whole(state))
    evaluation = jax.device_get(program.evaluate(state, global_batch(), run_key()))
    second, _ = program.step(state, global_batch(), key)
    return first, jax.device_get(metrics), evaluation, jax.device_get(program.whole(second))


def assert_close(actual, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), actual, expected)


@pytest.mark.parametrize("mode", ["mesh, data x fsdp", IN_PARTS, "pmap"])
def test_the_update_and_the_metrics_are_those_of_one_device(mode, programs, params, expected):
    first, metrics, evaluation, second = play(programs[mode], params)
    assert_close((metrics, evaluation), expected[1:3])
    for ours, theirs in ((first, expected[0]), (second, expected[3])):
        assert_close(ours.params, theirs.params)
        assert ours.step == theirs.step
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, jax.device_get(expected[3].params))
    assert max(jax.tree.leaves(moved)) > 1e-3  # far above the tolerance


def test_params_and_optimizer_state_are_cut_where_the_rules_say(programs, params):
    placed = programs["mesh, data x fsdp"].init(params)
    encoder, rest = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed):
        (encoder if "image_encoder" in jax.tree_util.keystr(path) else rest).append(leaf)
    cut = [leaf for leaf in encoder if leaf.addressable_shards[0].data.size < leaf.size]
    assert sum(leaf.size for leaf in cut) > 0.9 * sum(leaf.size for leaf in encoder)
    assert all(leaf.addressable_shards[0].data.size == leaf.size for leaf in rest)
    kernel = ("image_encoder", "blocks_0", "mlp", "lin1", "kernel")
    adam = next(s for s in placed.opt_state if hasattr(s, "mu"))
    for tree in (placed.params, adam.mu, adam.nu):
        leaf = functools.reduce(lambda node, name: node[name], kernel, tree)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(32, 128 // 4)}


def test_the_first_rule_that_matches_holds(params):
    rules = ((r"mlp/lin1/kernel", PartitionSpec("fsdp")), (r"", PartitionSpec()))
    found = param_shardings(params, make_mesh(2, 4), rules)
    assert found["image_encoder"]["blocks_0"]["mlp"]["lin1"]["kernel"].spec == PartitionSpec("fsdp")
    assert found["image_encoder"]["blocks_0"]["mlp"]["lin2"]["kernel"].spec == PartitionSpec()


@pytest.mark.parametrize("before", ["one", "mesh, data x fsdp", "pmap"])
@pytest.mark.parametrize("after", ["one", IN_PARTS, "mesh, data x fsdp", "pmap"])
def test_a_checkpoint_goes_on_on_other_devices(before, after, programs, params, expected, tmp_path):
    old, new = programs[before], programs[after]
    state, _ = old.step(old.init(params), global_batch(), run_key())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", old.whole(state))
        checkpointer.wait_until_finished()
        restored = new.place(checkpointer.restore(tmp_path / "state", new.template))
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((new.whole(restored), old.whole(state))))
    restored, _ = new.step(restored, global_batch(), run_key())
    assert_close(jax.device_get(new.whole(restored).params), expected[3].params)


@pytest.mark.parametrize(
    ("parallel", "batch_size", "accumulate", "message"),
    [
        (ParallelConfig("mesh", 0, 1), 6, 1, "8 devices divide, got 6 images"),
        (ParallelConfig("mesh", 0, 1), 8, 2, "8 devices divide, got 4 images"),
        (ParallelConfig("mesh", 1, 1), 8, 3, "divides into 3 parts"),
        (ParallelConfig("pmap", 2, 4), 8, 1, "expected fsdp 1"),
        (ParallelConfig("mesh", 8, 2), 16, 1, "needs 16 devices"),
        (ParallelConfig("pmap", 16), 16, 1, "at most 8 devices"),
    ],
)
def test_devices_that_do_not_fit_are_named(parallel, batch_size, accumulate, message, params):
    config = make_config(parallel=parallel, accumulate=accumulate)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch_size))
    with pytest.raises(ValueError, match=message):
        compile_program(sam_task(config, params), params)


@pytest.mark.slow  # both processes compile
@pytest.mark.parametrize("mode", ["mesh, data x fsdp", "pmap"])
def test_two_processes_of_four_devices_make_the_update_of_one_device(mode, params, expected, tmp_path):
    save_checkpoint(tmp_path / "start.safetensors", params, SMALL)
    run_two(lambda address, process: [__file__, address, str(process), mode, str(tmp_path)], devices=4)
    result = np.load(tmp_path / "result.npz")
    leaves = jax.tree.leaves((expected[0].params, expected[1], expected[2]))
    for i, leaf in enumerate(leaves):
        np.testing.assert_allclose(result[f"arr_{i}"], leaf, rtol=2e-4, atol=2e-5)


def _run_process(address: str, process: str, mode: str, folder: str) -> None:
    """One of two processes: an update and an evaluation from the folder's model, each on its half of the batch."""
    from jax.experimental import multihost_utils

    config = parallel_config(mode)
    parallel = dataclasses.replace(config.parallel, coordinator=address, processes=2, process=int(process))
    start_processes(parallel)
    assert jax.device_count() == 8
    assert len(jax.local_devices()) == 4
    half = jax.tree.map(lambda x: x[4 * int(process) :][:4], global_batch())
    params, _ = load_checkpoint(Path(folder) / "start.safetensors")
    program = compile_program(sam_task(config, params), params)
    state, key = program.init(params), program.replicate(run_key())
    with jax.transfer_guard("disallow"):
        state, metrics = program.step(state, half, key)
    evaluation = program.evaluate(state, half, run_key())
    learned = program.whole(state).params
    if mode != "pmap":
        learned = multihost_utils.process_allgather(learned, tiled=True)
    if process == "0":
        result = jax.device_get((learned, metrics, evaluation))
        np.savez(Path(folder) / "result.npz", *jax.tree.leaves(result))


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, "TPU pod"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "16"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host0:8080"}, "multislice"),
    ],
)
def test_launchers_are_known_by_their_variables(variables, launcher, monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert detect_launcher() == launcher


def test_addresses_that_are_not_complete_are_refused():
    with pytest.raises(ValueError, match="together"):
        start_processes(ParallelConfig(coordinator="localhost:1234", processes=2))
    with pytest.raises(ValueError, match=r"0\.\.1, got 2"):
        start_processes(ParallelConfig(coordinator="localhost:1234", processes=2, process=2))


if __name__ == "__main__":
    _run_process(*sys.argv[1:])
