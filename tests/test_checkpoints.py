"""A damaged checkpoint is never taken for a good one: the one before serves, or the run says that there is none."""

import logging
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.errors import UserError
from sam_jax.training.checkpoints import DAMAGED, Checkpoints, checksum

KEY = jax.random.key(3)


def make_state(step: int) -> dict:
    kernel = np.random.default_rng(step).normal(size=(100, 200)).astype(np.float32)
    return {"kernel": jnp.asarray(kernel), "count": jnp.int32(step)}


PROGRAM = SimpleNamespace(whole=lambda s: s, place=lambda s: s, template=jax.eval_shape(lambda: make_state(0)))


@pytest.fixture
def run(tmp_path):
    with Checkpoints(tmp_path, 3, PROGRAM) as checkpoints:
        for step, score in ((1, None), (2, 0.5)):
            checkpoints.save(step, make_state(step), KEY, score, force=True)
    return tmp_path


def files_of(run, step):
    """Returns the files of a checkpoint, the largest first."""
    found = (path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file())
    return sorted(found, key=lambda path: -path.stat().st_size)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 4
    path.write_bytes(bytes(content))


DAMAGE = {
    "cut": lambda run: files_of(run, 2)[0].write_bytes(files_of(run, 2)[0].read_bytes()[:-1000]),
    "emptied": lambda run: files_of(run, 2)[0].write_bytes(b""),
    "removed": lambda run: files_of(run, 2)[0].unlink(),
    "a bit turned at the start": lambda run: flip(files_of(run, 2)[0], 100),
    "a bit turned in the middle": lambda run: flip(files_of(run, 2)[0], 40_000),
    "no files": lambda run: [path.unlink() for path in files_of(run, 2)],
    "no manifest": lambda run: (run / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink(),
    "no position": lambda run: (run / "checkpoints" / "2" / "data" / "metadata").write_text(""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_taken_and_both_are_named(run, kind, caplog):
    DAMAGE[kind](run)
    with caplog.at_level(logging.WARNING), Checkpoints(run, 3, PROGRAM) as checkpoints:
        restored = checkpoints.latest()
        assert restored.step == 1
        np.testing.assert_array_equal(restored.state["kernel"], make_state(1)["kernel"])
        checkpoints.save(2, make_state(2), KEY, force=True)  # its place is free
    (message,) = (text for text in caplog.messages if "cannot be read" in text)
    assert "step 2 " in message
    assert "going on from step 1" in message
    assert (run / DAMAGED / "2").is_dir()
    with Checkpoints(run, 3, PROGRAM) as checkpoints:
        assert checkpoints.latest().step == 2


def test_when_none_can_be_read_that_is_said_and_nothing_is_moved(run):
    for step in (1, 2):
        files_of(run, step)[0].write_bytes(b"")
    with (
        Checkpoints(run, 3, PROGRAM) as checkpoints,
        pytest.raises(UserError, match=r"steps \[2, 1\] in .*checkpoints"),
    ):
        checkpoints.latest()
    assert not (run / DAMAGED).exists()


@pytest.mark.parametrize("content", ["", '{"score": 0.', "\xff"])
def test_a_damaged_score_is_named_with_what_to_do(run, content):
    path = run / "checkpoints" / "2" / "metrics" / "metrics"
    path.write_text(content, "latin-1")
    with pytest.raises(UserError, match=r"2/metrics/metrics.*remove that file"):
        Checkpoints(run, 3, PROGRAM)
    path.unlink()
    with Checkpoints(run, 3, PROGRAM) as checkpoints:
        assert checkpoints.latest().step == 2
        assert checkpoints.is_best(0.1)


@pytest.mark.parametrize("content", ['{"commit_timestamp_nsecs": "x"}', '{"metrics": 7}'])
def test_damaged_facts_of_a_checkpoint_are_named(run, content):
    (run / "checkpoints" / "2" / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(UserError, match="_CHECKPOINT_METADATA is damaged"):
        Checkpoints(run, 3, PROGRAM)


def test_a_checkpoint_without_a_checksum_is_of_an_earlier_version_and_read(run):
    position = run / "checkpoints" / "2" / "data" / "metadata"
    content = position.read_text()
    assert f'"checksum": {checksum(make_state(2))}' in content
    position.write_text(content.replace("checksum", "other"))
    with Checkpoints(run, 3, PROGRAM) as checkpoints:
        assert checkpoints.latest().step == 2


def test_the_checksum_sees_every_bit_and_neither_order_nor_devices():
    values = {
        "float32": jnp.linspace(-1, 1, 9),
        "bfloat16": jnp.linspace(-1, 1, 9, dtype=jnp.bfloat16),
        "int32": jnp.arange(-4, 5),
        "uint32": jnp.arange(9, dtype=jnp.uint32),
        "bool": jnp.arange(9) % 2 == 0,
    }
    found = checksum(values)
    assert found == checksum(dict(reversed(values.items()))) == checksum(tuple(values.values()))
    mesh = jax.make_mesh((3,), ("data",), devices=jax.devices()[:3])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert found == checksum(jax.device_put(values, sharding))
    for name, value in values.items():
        changed = value.at[3].set(~value[3]) if value.dtype == bool else value.at[3].add(1)
        assert checksum(values | {name: changed}) != found
