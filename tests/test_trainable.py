"""What learns and what stays: names, adapters, averages, parts of a batch, updates that are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cases.models import SMALL
from cases.training import make_batch, make_config, start
from sam_jax.config import FinetuneConfig, PromptConfig
from sam_jax.modeling import init_params
from sam_jax.training.step import model_params
from sam_jax.training.trainable import FOURIER_MATRIX, encoder_work, join_params, split_params

KEY = jax.random.key(0)
ONE_ROUND = PromptConfig(point_rounds=0, refine_rounds=0)


@pytest.fixture(scope="module")
def params():
    return init_params(SMALL, KEY)


def names(tree) -> set[str]:
    return set(flatten_dict(tree, sep="/"))


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    "config", [FinetuneConfig(), FinetuneConfig("^mask_decoder/"), FinetuneConfig("^mask_decoder/", lora_rank=4)]
)
def test_splitting_and_joining_gives_the_same_model(params, config):
    trained, frozen = split_params(params, config, KEY)
    assert FOURIER_MATRIX in names(frozen)
    assert not names(trained) & names(frozen)
    assert_equal(join_params(trained, frozen, config), params)


def test_a_regular_expression_chooses_what_learns(params):
    trained, _ = split_params(params, FinetuneConfig("^mask_decoder/"), KEY)
    assert names(trained) == {name for name in names(params) if name.startswith("mask_decoder/")}
    assert encoder_work(params, FinetuneConfig("^mask_decoder/")) == "frozen"
    assert encoder_work(params, FinetuneConfig()) == "trained"


def test_adapters_learn_in_place_of_their_kernels(params):
    config = FinetuneConfig("^mask_decoder/", lora_rank=3, lora_alpha=6.0)
    trained, frozen = split_params(params, config, KEY)
    name = "image_encoder/blocks_1/attn/qkv/kernel"
    flat = flatten_dict(trained, sep="/")
    assert flat[f"{name}_lora_down"].shape == (32, 3)
    assert flat[f"{name}_lora_up"].shape == (3, 96)
    assert name in names(frozen)
    trained["image_encoder"]["blocks_1"]["attn"]["qkv"]["kernel_lora_up"] = jnp.ones((3, 96))
    joined = flatten_dict(join_params(trained, frozen, config), sep="/")
    expected = flatten_dict(params, sep="/")[name] + 2.0 * flat[f"{name}_lora_down"].sum(1, keepdims=True)
    np.testing.assert_allclose(joined[name], jnp.broadcast_to(expected, (32, 96)), rtol=1e-5)
    assert names(join_params(trained, frozen, config)) == names(params)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FinetuneConfig("decodr"), "'decodr' finds none"),
        (FinetuneConfig(lora_rank=2, lora_targets="qvk"), "'qvk' finds none"),
        (FinetuneConfig(lora_rank=2, lora_targets="attn/qkv"), "finds .*bias"),
    ],
)
def test_expressions_that_find_nothing_are_named(params, config, message):
    with pytest.raises(ValueError, match=message):
        split_params(params, config, KEY)


def test_only_what_learns_changes_and_the_average_follows(params):
    finetune = FinetuneConfig("^mask_decoder/", lora_rank=2)
    config = make_config(finetune=finetune, ema_decay=0.75, prompts=ONE_ROUND)
    state, step = start(config, params)
    new, _ = step(state, make_batch(), KEY)
    assert_equal(new.frozen, state.frozen)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), new.params, state.params)
    flat = flatten_dict(changed, sep="/")
    assert flat["image_encoder/blocks_0/attn/qkv/kernel_lora_up"]
    assert not flat["image_encoder/blocks_0/attn/qkv/kernel_lora_down"]  # its gradient passes through the zeros
    assert np.mean(list(flat.values())) > 0.6
    jax.tree.map(
        lambda ema, old, new: np.testing.assert_allclose(ema, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7),
        new.ema,
        state.params,
        new.params,
    )
    exported = model_params(new, config)
    np.testing.assert_array_equal(exported["mask_decoder"]["iou_token"], new.ema["mask_decoder"]["iou_token"])


def test_an_update_without_finite_gradients_is_left_out(params):
    config = make_config(prompts=ONE_ROUND)
    state, step = start(config, params)
    # Infinite embeddings, as an overflow would make them.
    broken = make_batch()._replace(images=None, maps={"embedding": np.full((2, 8, 8, 32), np.inf, np.float32)})
    whole = make_batch()._replace(images=None, maps={"embedding": np.ones((2, 8, 8, 32), np.float32)})
    new, metrics = step(state, broken, KEY)
    assert not np.isfinite(metrics["grad_norm"])
    assert_equal((new.params, new.opt_state), (state.params, state.opt_state))
    assert (int(new.step), int(new.skipped)) == (1, 1)
    new, _ = step(new, broken, KEY)
    assert int(new.skipped) == 2
    after, _ = step(new, whole, KEY)
    assert (int(after.step), int(after.skipped)) == (3, 0)
    assert np.isfinite(jax.tree.leaves(jax.tree.map(jnp.sum, after.params))).all()
    assert bool((after.params["mask_decoder"]["iou_token"] != state.params["mask_decoder"]["iou_token"]).any())


def test_embeddings_of_a_frozen_encoder_take_the_place_of_images(params):
    from sam_jax.modeling import encode_image, normalize_images

    config = make_config(finetune=FinetuneConfig("^mask_decoder/"), prompts=ONE_ROUND)
    state, step = start(config, params)
    batch = make_batch()
    images = normalize_images(jnp.asarray(batch.images), jnp.asarray(batch.sizes), SMALL.encoder)
    embeddings = np.asarray(encode_image(params, images, SMALL))
    _, expected = step(state, batch, KEY)
    _, cached = step(state, batch._replace(images=None, maps={"embedding": embeddings}), KEY)
    np.testing.assert_allclose(cached["loss"], expected["loss"], rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_arithmetic_stays_near_float32(params):
    config = make_config(prompts=ONE_ROUND)
    state, step = start(config, params)
    low_state, low_step = start(dataclasses.replace(config, dtype="bfloat16"), params)
    (_, metrics), (low, low_metrics) = step(state, make_batch(), KEY), low_step(low_state, make_batch(), KEY)
    np.testing.assert_allclose(low_metrics["loss"][0], metrics["loss"][0], rtol=0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {np.dtype("float32")}
