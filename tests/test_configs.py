"""Every shipped training config says what the paper says, and its model shrunk trains a step."""

import dataclasses
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from cases.models import SMALL
from cases.training import make_batch
from sam_jax.config import FinetuneConfig, LossConfig, ParallelConfig, PromptConfig, TrainConfig
from sam_jax.config_file import find_config, list_configs, load_config
from sam_jax.modeling import init_params
from sam_jax.training.loop import compile_program
from sam_jax.training.sam import sam_task
from sam_jax.training.trainable import encoder_work

CONFIGS = sorted(path.stem for path in Path(__file__).parent.parent.joinpath("configs").glob("*.py"))
TRAINING = [name for name in CONFIGS if not name.startswith("eval")]


def load(name: str) -> TrainConfig:
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize(
    ("name", "batch", "steps", "rate", "layer_decay", "drop_path"),
    [
        ("vit_h", 256, 90_000, 8e-4, 0.8, 0.4),
        ("vit_l", 128, 180_000, 4e-4, 0.8, 0.4),
        ("vit_b", 128, 180_000, 8e-4, 0.6, 0.6),
    ],
)
def test_the_recipes_are_the_papers(name, batch, steps, rate, layer_decay, drop_path):
    config = load(name)
    assert config.model.name == name
    assert (config.data.batch_size, config.steps, config.drop_path) == (batch, steps, drop_path)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.layer_decay) == (rate, layer_decay)
    assert (optimizer.warmup_steps, optimizer.betas, optimizer.weight_decay) == (250, (0.9, 0.999), 0.1)
    assert optimizer.decay_steps == {90_000: (60_000, 86_666), 180_000: (120_000, 173_333)}[steps]
    assert config.prompts == PromptConfig(point_rounds=8, refine_rounds=2)
    assert (config.data.masks_per_image, config.data.scale_range, config.decoder_dropout) == (64, (1.0, 1.0), 0.1)
    assert batch * steps == 23_040_000  # two epochs of SA-1B


@pytest.mark.parametrize("name", [name for name in TRAINING if name.startswith("finetune")])
def test_fine_tuning_learns_and_keeps_what_it_should(name):
    """The config with a small model, one round and one device."""
    config = dataclasses.replace(
        load(name),
        model=SMALL,
        loss=LossConfig(size=32),
        prompts=PromptConfig(point_rounds=0, refine_rounds=0),
        parallel=ParallelConfig("mesh", 1, 1),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2))
    params = init_params(SMALL, jax.random.key(0))
    program = compile_program(sam_task(config, params), params)
    encoder = encoder_work(params, config.finetune)
    assert encoder == {"finetune_coco": "cached", "finetune_lora": "trained", "finetune_full": "trained"}[name]
    batch = make_batch()
    if encoder == "cached":
        batch = batch._replace(images=None, maps={"embedding": np.ones((2, 8, 8, 32), np.float32)})
    start = program.init(params)
    before = jax.device_get(start)
    state, metrics = program.step(start, batch, jax.random.key(1))
    assert np.isfinite(metrics["grad_norm"])
    frozen = jax.tree.leaves(before.frozen)
    jax.tree.map(np.testing.assert_array_equal, frozen, jax.device_get(jax.tree.leaves(state.frozen)))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, jax.device_get(state.params))
    assert np.mean(jax.tree.leaves(moved)) > 0.6
    assert ("image_encoder" in before.params) == (encoder == "trained")
    assert (config.finetune == FinetuneConfig()) == (name == "finetune_full")


@pytest.mark.parametrize("task", ["train", "eval"])
def test_shipped_configs_are_found_by_name_and_say_what_they_are(task):
    shipped = list_configs(task)
    assert {*list_configs("train"), *(f"eval_{name}" for name in list_configs("eval"))} == {*CONFIGS} - {"__init__"}
    for name, first_line in shipped.items():
        assert first_line.endswith((".", ":")), name
        assert find_config(name, task).stem == ("eval_" if task == "eval" else "") + name
    assert find_config("eval_small", "eval") == find_config("small", "eval")
    assert find_config("configs/small.py", "eval") == Path("configs/small.py")


def test_an_unknown_name_is_answered_with_the_names_that_there_are():
    with pytest.raises(FileNotFoundError, match=r"named edgs, did you mean edges\? Shipped are .*proposals"):
        load_config(["edgs"], "eval")
    with pytest.raises(FileNotFoundError, match=r"named edges\. Shipped are .*finetune_coco"):
        load_config(["edges"], "train")
    for name, task, now in (
        ("tiny", "train", "small"),
        ("eval_tiny", "eval", "small"),
        ("tiny_crops", "train", "small_crops"),
    ):
        with pytest.raises(FileNotFoundError, match=f"there is no config {name} any more: {now} replaced it"):
            load_config([name], task)
    with pytest.raises(FileNotFoundError, match=r"expected a config at edges.py, found no file"):
        load_config(["edges.py"], "eval")
    with pytest.raises(ValueError, match="expected a config first"):
        load_config(["--data", "x"], "eval")
