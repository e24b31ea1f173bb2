"""The pure functions give the same numbers under jit, vmap, pmap and on a mesh; batching and padding are neutral."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.models import SMALL
from sam_jax.modeling import decode_masks, encode_image, encode_prompts, init_params, normalize_images, predict_masks
from sam_jax.modeling.mask_decoder import mask_statistics
from sam_jax.parallel.mesh import make_mesh, param_shardings, shard_batch
from sam_jax.types import FOREGROUND, NOT_A_POINT, PAD, Prompts

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}  # float32, other orders of summation; logits are of order 1
B, Q = 8, 3


@pytest.fixture(scope="module")
def params():
    params = init_params(SMALL, jax.random.key(0))
    # Relative positions start at zero, where an error in them would not show.
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (B, 64, 64, 3)).astype(np.uint8)
    return normalize_images(pixels, np.array([[64, 40 + i] for i in range(B)]), SMALL.encoder)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 60, (B, Q, 4, 2)).astype(np.float32)
    labels = np.array([[1, NOT_A_POINT, PAD, PAD], [2, 3, PAD, PAD], [1, 0, 2, 3]], np.int32)
    logits = rng.normal(size=(B, Q, SMALL.low_res_size, SMALL.low_res_size)).astype(np.float32)
    has_mask = rng.random((B, Q)) < 0.5
    return Prompts(points, np.tile(labels, (B, 1, 1)), logits, has_mask)


@pytest.fixture(scope="module")
def predict():
    return functools.partial(predict_masks, config=SMALL)


@pytest.fixture(scope="module")
def expected(params, images, prompts, predict):
    """One device, compiled as a whole."""
    return jax.device_get(jax.jit(predict)(params, images, prompts))


def assert_same(actual, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **TOLERANCE), jax.device_get(actual), expected)


def test_eager_parts_equal_the_compiled_whole(params, images, prompts, expected):
    embeddings = encode_image(params, images, SMALL)
    assert_same(decode_masks(params, embeddings, encode_prompts(params, prompts, SMALL), SMALL), expected)


def test_vmap_over_images(params, images, prompts, predict, expected):
    def one(image, prompt):
        prediction = predict(params, image[None], jax.tree.map(lambda x: x[None], prompt))
        return jax.tree.map(lambda x: x[0], prediction)

    assert_same(jax.jit(jax.vmap(one))(images, prompts), expected)


def test_pmap_over_eight_devices(params, images, prompts, predict, expected):
    def spread(tree):
        return jax.tree.map(lambda x: jnp.reshape(x, (8, B // 8, *x.shape[1:])), tree)

    actual = jax.pmap(predict, in_axes=(None, 0, 0))(params, spread(images), spread(prompts))
    assert_same(jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), actual), expected)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_a_mesh_with_sharded_images_and_params(params, images, prompts, predict, expected, data, fsdp):
    mesh = make_mesh(data, fsdp)
    sharded = jax.device_put(params, param_shardings(params, mesh))
    if fsdp > 1:
        kernel = sharded["image_encoder"]["blocks_0"]["mlp"]["lin1"]["kernel"]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(32, 128 // fsdp)}
    actual = jax.jit(predict)(sharded, *shard_batch((images, prompts), mesh))
    assert len(actual.low_res_logits.sharding.device_set) == 8
    assert_same(actual, expected)


def test_batched_images_and_prompts_equal_one_at_a_time(params, images, prompts, predict, expected):
    one_by_one = jax.jit(predict)
    for b, q in [(0, 0), (3, 1), (7, 2)]:
        prompt = jax.tree.map(lambda x, b=b, q=q: x[b : b + 1, q : q + 1], prompts)
        actual = one_by_one(params, images[b : b + 1], prompt)
        assert_same(actual, jax.tree.map(lambda x, b=b, q=q: x[b : b + 1, q : q + 1], expected))


def test_pad_slots_are_neutral_and_the_padding_point_is_not(params):
    grid = SMALL.grid_size
    embeddings = np.random.default_rng(2).normal(size=(1, grid, grid, SMALL.prompt_dim)).astype(np.float32)
    decode = jax.jit(lambda prompts: decode_masks(params, embeddings, encode_prompts(params, prompts, SMALL), SMALL))

    def logits(*extra):
        points = np.array([[[[20, 20], *[[7, 7]] * len(extra)]]], np.float32)
        return decode(Prompts(points, np.array([[[FOREGROUND, *extra]]], np.int32))).low_res_logits

    alone = logits()
    np.testing.assert_allclose(logits(PAD, PAD, PAD), alone, **TOLERANCE)
    assert np.abs(logits(NOT_A_POINT, PAD, PAD) - alone).max() > 1e-2


def test_prompts_without_a_mask_equal_prompts_without_mask_input(params, images, prompts, predict):
    none = prompts._replace(has_mask=np.zeros((B, Q), bool))
    without = prompts._replace(mask_logits=None, has_mask=None)
    assert_same(jax.jit(predict)(params, images, none), jax.device_get(jax.jit(predict)(params, images, without)))


@pytest.mark.parametrize("with_masks", [False, True])
def test_prompts_in_chunks_equal_all_at_once(params, monkeypatch, with_masks):
    """As many images and prompts as the grid has rows and columns: their shapes do not tell them apart."""
    rng, n, side = np.random.default_rng(2), SMALL.grid_size, SMALL.low_res_size
    embeddings = rng.normal(size=(n, n, n, SMALL.prompt_dim)).astype(np.float32)
    points = rng.uniform(0, 60, (n, n, 1, 2)).astype(np.float32)
    masks = rng.normal(size=(n, n, side, side)).astype(np.float32) if with_masks else None
    encoded = encode_prompts(params, Prompts(points, np.full((n, n, 1), FOREGROUND), masks), SMALL)
    whole = jax.device_get(decode_masks(params, embeddings, encoded, SMALL))
    monkeypatch.setattr("sam_jax.modeling.sam.CPU_DECODER_ELEMENTS", 2 * embeddings.size)
    mapped = jax.make_jaxpr(functools.partial(decode_masks, config=SMALL))(params, embeddings, encoded)
    assert "scan" in str(mapped)
    assert_same(decode_masks(params, embeddings, encoded, SMALL), whole)


def test_statistics_of_masks_by_hand():
    logits = np.full((1, 3, 4, 4), -3.0, np.float32)
    logits[0, 0, :2, :2] = [[0.5, 2.0], [2.0, 2.0]]  # 4 of 16 pixels, 3 of them above 1
    logits[0, 1, 0] = -0.5  # no mask, though 4 pixels are above -1
    found = mask_statistics(logits)
    certainty = (np.tanh(0.25) + 3 * np.tanh(1.0)) / 4
    np.testing.assert_allclose(found, [[[certainty, 0.75, 0.5], [0, 0, 0], [0, 0, 0]]], rtol=1e-6)
    assert not np.any(jax.grad(lambda logits: mask_statistics(logits).sum())(logits))


def test_the_predicted_iou_may_depend_on_the_mask(params, images, prompts, expected):
    config = dataclasses.replace(SMALL, iou_sees_mask=True)
    assert "iou_sees_mask" in config.to_fields()
    assert "iou_sees_mask" not in SMALL.to_fields()
    new = init_params(config, jax.random.key(0))["mask_decoder"]["iou_statistics"]
    assert not np.any(new)  # a model goes on with the head that it has
    weights = np.array([0.5, 0.2, -0.3, 0.1], np.float32)
    params = params | {"mask_decoder": params["mask_decoder"] | {"iou_statistics": weights}}
    found = jax.device_get(jax.jit(functools.partial(predict_masks, config=config))(params, images, prompts))
    np.testing.assert_allclose(found.low_res_logits, expected.low_res_logits, **TOLERANCE)
    change = np.asarray(mask_statistics(expected.low_res_logits)) @ weights[:3] + weights[3]
    np.testing.assert_allclose(found.iou_predictions, expected.iou_predictions + change, atol=1e-3)


def test_bfloat16_stays_near_float32(params, images, prompts, predict, expected):
    rough = jax.jit(functools.partial(predict, dtype=jnp.bfloat16))(params, images, prompts)
    assert rough.low_res_logits.dtype == rough.iou_predictions.dtype == jnp.float32
    error = np.abs(np.asarray(rough.low_res_logits) - expected.low_res_logits).mean()
    assert error < 0.05 * np.abs(expected.low_res_logits).mean() + 0.02


def test_padding_is_zero_after_normalisation():
    images = np.full((1, 64, 64, 3), 200, np.uint8)
    pixels = np.asarray(normalize_images(images, np.array([[30, 50]]), SMALL.encoder))[0]
    assert (pixels[30:] == 0).all()
    assert (pixels[:, 50:] == 0).all()
    mean, std = np.array(SMALL.encoder.pixel_mean), np.array(SMALL.encoder.pixel_std)
    np.testing.assert_allclose(pixels[0, 0], (200 - mean) / std, rtol=1e-6)


def test_an_image_of_another_size_and_a_mesh_too_large_are_named(params):
    with pytest.raises(ValueError, match=r"\(B, 64, 64, 3\)"):
        encode_image(params, jnp.zeros((1, 32, 32, 3)), SMALL)
    with pytest.raises(ValueError, match="needs 16 devices"):
        make_mesh(4, 4)
