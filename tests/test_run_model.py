"""The model in a run's checkpoint is whole, or the checkpoint is said to be damaged."""

import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cases.models import SMALL
from cases.training import make_config
from sam_jax.errors import UserError
from sam_jax.modeling import init_params
from sam_jax.training.checkpoints import checksum, open_checkpoints
from sam_jax.training.export import load_run
from sam_jax.training.run import claim_folder

STEP = 4
FIRST = "('params', 'image_encoder', 'pos_embed')"


@pytest.fixture(scope="module")
def params():
    return jax.device_get(init_params(SMALL, jax.random.key(0)))


def write_run(folder, params):
    """Writes a run with one checkpoint; returns the file that says what is in it."""
    config = dataclasses.replace(make_config(), out=folder)
    claim_folder(folder, config, resume=False)
    state = {"params": params, "frozen": {}, "ema": None}
    data = {"batches": STEP, "checksum": checksum(state)}
    with open_checkpoints(folder / "checkpoints") as manager:
        items = {"state": ocp.args.StandardSave(state), "data": ocp.args.JsonSave(data)}
        manager.save(STEP, args=ocp.args.Composite(**items), metrics={})
    return folder / "checkpoints" / str(STEP) / "state" / "_METADATA"


def test_the_model_is_the_one_that_was_saved(tmp_path, params):
    write_run(tmp_path, params)
    loaded, config, _ = load_run(tmp_path)
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def lack_average(tree):
    del tree["('ema',)"]


def average_nothing(tree):
    tree["('ema',)"]["value_metadata"]["value_type"] = "Dict"


def lack_zeros(tree):  # which no checksum sees
    del tree[FIRST]


@pytest.mark.parametrize("damage", [lack_average, average_nothing, lack_zeros])
def test_a_checkpoint_with_another_tree_is_named(tmp_path, params, damage):
    params = jax.tree.map(np.copy, params)
    params["image_encoder"]["pos_embed"][:] = 0
    path = write_run(tmp_path, params)
    content = json.loads(path.read_text())
    damage(content["tree_metadata"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"the checkpoint of step {STEP} in .*checkpoints cannot be read \(its tree"):
        load_run(tmp_path)
