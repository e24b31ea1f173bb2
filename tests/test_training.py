"""Losses against plain formulas, the optimizer's rates, and that the whole step learns."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cases.models import SMALL
from cases.training import make_batch, make_config, start
from sam_jax.config import LossConfig, OptimizerConfig, PromptConfig
from sam_jax.modeling import init_params
from sam_jax.modeling.resize import resize_positions
from sam_jax.training.losses import dice_loss, focal_loss, mask_iou, segmentation_loss
from sam_jax.training.optimizer import layer_scales, learning_rate_schedule, make_optimizer
from sam_jax.training.step import init_state, model_params, run_rounds, train_step


def test_focal_loss_is_the_formula_averaged_over_the_image():
    logits, truth = np.array([[2.0, -1.0], [0.5, 9.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    pixels = np.array([[1.0, 1.0], [1.0, 0.0]])
    p = 1 / (1 + np.exp(-logits))
    p_t, a_t = np.where(truth, p, 1 - p), np.where(truth, 0.25, 0.75)
    expected = (-a_t * (1 - p_t) ** 2 * np.log(p_t))[pixels > 0].mean()
    assert focal_loss(logits, truth, pixels) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_of_extreme_logits_is_finite_with_finite_gradient():
    value, grad = jax.value_and_grad(lambda x: focal_loss(x, jnp.eye(2), jnp.ones((2, 2))))(
        jnp.array([[-1e4, 1e4]] * 2)
    )
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_dice_loss_by_hand():
    logits = np.array([[100.0, 100.0, -100.0, 100.0]])
    truth, pixels = np.array([[1.0, 0.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 1.0, 0.0]])
    assert dice_loss(logits, truth, pixels) == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_iou_by_hand():
    logits = np.array([[1.0, 1.0, -1.0, 1.0]])
    truth, pixels = np.array([[1.0, 0.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 1.0, 0.0]])
    assert mask_iou(logits, truth, pixels) == pytest.approx(1 / 3)
    assert mask_iou(-np.ones((2, 2)), np.zeros((2, 2)), np.ones((2, 2))) == 0


def test_only_the_best_of_three_masks_receives_gradient():
    truth = np.zeros((1, 1, 4, 4), np.float32)
    truth[..., :2] = 1
    logits = jnp.asarray(np.stack([truth * 0 - 1, truth * 6 - 3, truth * -6 + 3], 2))
    iou_predictions = jnp.array([[[0.9, 0.5, 0.1]]])

    def loss(logits, iou_predictions):
        value, _ = segmentation_loss(logits, iou_predictions, truth, np.ones((1, 4, 4)), LossConfig())
        return value.sum()

    grads, iou_grads = jax.grad(loss, (0, 1))(logits, iou_predictions)
    assert [bool(jnp.any(grads[0, 0, i])) for i in range(3)] == [False, True, False]
    assert iou_grads[0, 0].tolist() == pytest.approx([0.0, 2 * (0.5 - 1.0), 0.0])
    everything = LossConfig(iou_of_all_masks=True)
    _, terms = segmentation_loss(logits, iou_predictions, truth, np.ones((1, 4, 4)), everything)
    assert float(terms["iou_error"][0, 0]) == pytest.approx((0.9**2 + 0.5**2 + 0.1**2) / 3)
    _, terms = segmentation_loss(logits, iou_predictions, truth, np.ones((1, 4, 4)), LossConfig())
    assert float(terms["iou"][0, 0]) == 0.0  # the trusted mask is the first, which is empty
    assert float(terms["oracle_iou"][0, 0]) == 1.0


def test_a_part_of_the_loss_can_be_of_the_mask_that_the_model_trusts():
    rng = np.random.default_rng(0)
    truth = (rng.random((1, 2, 4, 4)) > 0.5).astype(np.float32)
    logits = jnp.asarray(np.stack([-truth, 6 * truth - 3, 2 - truth], 2))
    iou_predictions = jnp.array([[[0.9, 0.5, 0.1], [0.5, 0.9, 0.1]]])  # first a bad mask is trusted, then the best
    pixels = np.ones((1, 4, 4))

    def loss(logits, trusted):
        return segmentation_loss(logits, iou_predictions, truth, pixels, LossConfig(iou=0.0, trusted=trusted))[0]

    own = focal_loss(logits, truth[:, :, None], pixels) * 20 + dice_loss(logits, truth[:, :, None], pixels)
    np.testing.assert_allclose(
        loss(logits, 0.25)[0], [0.75 * own[0, 0, 1] + 0.25 * own[0, 0, 0], own[0, 1, 1]], rtol=1e-6
    )
    grads = jax.grad(lambda logits: loss(logits, 0.25).sum())(logits)
    assert np.any(grads, (-2, -1))[0].tolist() == [[True, True, False], [False, True, False]]


def test_the_learning_rate_warms_up_and_steps_down():
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay_steps=(100, 200)))
    assert [float(schedule(step)) for step in (0, 4, 9, 50, 101, 201)] == pytest.approx([0.1, 0.5, 1, 1, 0.1, 0.01])


def test_layer_decay_grows_towards_the_output_and_spares_the_decoder():
    params = jax.eval_shape(functools.partial(init_params, SMALL), jax.random.key(0))
    scales = layer_scales(params, SMALL.encoder, 0.5)
    encoder = scales["image_encoder"]
    assert encoder["pos_embed"] == encoder["patch_embed_proj"]["kernel"] == 0.5**3
    assert encoder["blocks_0"]["attn"]["qkv"]["kernel"] == 0.5**2
    assert encoder["blocks_1"]["norm1"]["scale"] == 0.5
    assert encoder["neck_0"]["kernel"] == scales["mask_decoder"]["iou_token"] == 1.0


def test_every_round_reports_and_empty_slots_do_not_count():
    config, batch = make_config(), make_batch()
    params = init_params(SMALL, jax.random.key(0))
    run = functools.partial(run_rounds, config=config, training=True)
    terms = jax.eval_shape(run, params, batch, jax.random.key(1)).terms
    assert {name: values.shape for name, values in terms.items()} == dict.fromkeys(
        ("loss", "focal", "dice", "iou_error", "iou", "oracle_iou"), (5, 2, 3)
    )
    state, step = start(config, params)
    changed = batch._replace(boxes=batch.boxes.copy())
    changed.boxes[1, 2] = 0, 0, 50, 40
    losses = [step(state, b, jax.random.key(1))[1]["loss"] for b in (batch, changed)]
    np.testing.assert_array_equal(*losses)


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    batch, params = make_batch(), init_params(SMALL, jax.random.key(0))

    def gradients(config):
        def loss(params):
            return run_rounds(params, batch, jax.random.key(1), config, training=True).terms["loss"].sum()

        return jax.jit(jax.grad(loss))(params)

    noisy = make_config(drop_path=0.3, decoder_dropout=0.1)
    plain, remat = gradients(noisy), gradients(dataclasses.replace(noisy, remat=True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), plain, remat)


def test_a_step_never_calls_back_to_the_host_and_holds_no_array_of_a_device():
    """What `jax.transfer_guard` does not see on a CPU: transfers from the device to the host inside the step."""
    config = make_config()
    make = functools.partial(make_optimizer, config.optimizer, SMALL.encoder)
    params = jax.eval_shape(functools.partial(init_params, SMALL), jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, config=config, make_optimizer=make), params, key)
    step = functools.partial(train_step, config=config, optimizer=make(state.params))
    jaxpr = jax.make_jaxpr(step)(state, make_batch(), key)
    assert "dot_general" in str(jaxpr)
    assert "callback" not in str(jaxpr)
    assert not [constant for constant in jaxpr.consts if isinstance(constant, jax.Array)]


def test_one_batch_overfits_and_the_fourier_matrix_stays():
    config, batch = make_config(), make_batch()
    params = init_params(SMALL, jax.random.key(0))
    state, step = start(config, params)
    before = jax.device_get(params["prompt_encoder"]["pe_layer"])
    history = []
    for _ in range(250):
        state, metrics = step(state, batch, jax.random.key(2))
        history.append(jax.device_get(metrics))
    first, last = history[0], history[-10:]
    assert np.mean([m["loss"].sum() for m in last]) < 0.25 * first["loss"].sum()
    assert np.mean([m["oracle_iou"][0] for m in last]) > 0.8
    assert np.mean([m["iou"][-1] for m in last]) > 0.85
    jax.tree.map(
        np.testing.assert_array_equal, before, jax.device_get(model_params(state, config)["prompt_encoder"]["pe_layer"])
    )


def test_positions_resize_to_a_larger_image_and_refuse_another_model():
    params = init_params(SMALL, jax.random.key(0))
    large = dataclasses.replace(SMALL, name="large").with_image_size(128)
    expected = jax.eval_shape(functools.partial(init_params, large), jax.random.key(0))
    resized = resize_positions(params, SMALL, large)
    assert jax.tree.map(jnp.shape, resized) == jax.tree.map(jnp.shape, expected)
    assert resized["prompt_encoder"] is params["prompt_encoder"]  # positions of prompts are fractions of the frame
    deeper = dataclasses.replace(SMALL.encoder, depth=4)
    with pytest.raises(ValueError, match=r"encoder\.depth"):
        resize_positions(params, SMALL, dataclasses.replace(SMALL, encoder=deeper))


def test_gradients_reach_every_parameter_but_the_fourier_matrix():
    batch, params = make_batch(), init_params(SMALL, jax.random.key(0))

    def loss(params):
        return run_rounds(params, batch, jax.random.key(1), make_config(), training=True).terms["loss"].sum()

    grads = jax.jit(jax.grad(loss))(params)
    norms = {
        jax.tree_util.keystr(path): float(jnp.linalg.norm(g.ravel()))
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
    }
    silent = {name for name, norm in norms.items() if norm == 0.0}
    unchosen = {name for name in silent if re.search("hypernetworks_mlps_[123]", name)}  # never the best of three here
    assert silent - unchosen == {"['prompt_encoder']['pe_layer']['positional_encoding_gaussian_matrix']"}
    assert len(unchosen) < 3 * 6


def test_the_single_mask_can_learn_from_first_prompts_too():
    """Alone it learns from later rounds only. What the first round reports, and its three masks' gradients, stay."""
    batch, params = make_batch(), init_params(SMALL, jax.random.key(0))

    def run(single_mask_first):
        config = make_config(
            prompts=PromptConfig(point_rounds=0, refine_rounds=0),
            loss=LossConfig(size=32, single_mask_first=single_mask_first),
        )

        def loss(params):
            terms = run_rounds(params, batch, jax.random.key(1), config, training=True).terms
            return terms["loss"].sum(), terms

        grads, terms = jax.jit(jax.grad(loss, has_aux=True))(params)
        decoder = grads["mask_decoder"]
        norms = {i: optax.tree.norm(decoder[f"output_hypernetworks_mlps_{i}"]) for i in range(4)}
        return norms, terms

    (without, terms), (with_single, more) = run(False), run(True)
    assert without[0] == 0 < with_single[0]
    for i in (1, 2, 3):
        np.testing.assert_allclose(with_single[i], without[i], rtol=1e-4)
    for name in terms.keys() - {"loss"}:
        np.testing.assert_allclose(more[name], terms[name], rtol=1e-5)
    assert (more["loss"] > terms["loss"]).all()
