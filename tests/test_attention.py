"""The fast formulations of attention equal slow plain ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases.models import TINY
from sam_jax.modeling import decode_masks, encode_prompts, init_params
from sam_jax.modeling.attention import attend, attend_in_cache, fold_relative_positions
from sam_jax.modeling.common import gelu
from sam_jax.modeling.transformer import DecoderAttention
from sam_jax.types import FOREGROUND, NOT_A_POINT, PAD, Prompts

DIM, HEADS = 16, 2
FEW, MANY = 3, 40


def plain_attention(params, q, k, v, key_mask=None):
    """Computes attention head by head, with full projections of all inputs."""
    groups = max(q.shape[1], k.shape[1])
    q, k, v = (
        jnp.broadcast_to(x, (x.shape[0], groups, *x.shape[2:])) @ params[name]["kernel"] + params[name]["bias"]
        for x, name in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj"))
    )
    outputs = []
    for q_h, k_h, v_h in zip(*(jnp.split(x, HEADS, -1) for x in (q, k, v)), strict=True):
        logits = q_h @ k_h.swapaxes(-1, -2) / q_h.shape[-1] ** 0.5
        if key_mask is not None:
            logits = jnp.where(key_mask[:, :, None], logits, -jnp.inf)
        outputs.append(jax.nn.softmax(logits, -1) @ v_h)
    return jnp.concatenate(outputs, -1) @ params["out_proj"]["kernel"] + params["out_proj"]["bias"]


def attention_case(query_shape, key_shape, *, downsample=1, seed=0):
    """Returns a module, random params and inputs; shapes are (prompts, length)."""
    keys = jax.random.split(jax.random.key(seed), 4)
    q = jax.random.normal(keys[0], (2, *query_shape, DIM))
    k, v = (jax.random.normal(key, (2, *key_shape, DIM)) for key in keys[1:3])
    module = DecoderAttention(DIM, HEADS, downsample, 0.0, jnp.float32)
    return module, module.init(keys[3], q, k, v, None, True), (q, k, v)


SIDES = {
    "tokens to an image of their own": ((5, FEW), (5, MANY)),
    "tokens of one prompt to a shared image": ((1, FEW), (1, MANY)),
    "tokens of many prompts to a shared image": ((5, FEW), (1, MANY)),
    "too many tokens to fold": ((5, 12), (5, MANY)),
    "an image of its own to tokens": ((5, MANY), (5, FEW)),
    "a shared image to tokens of one prompt": ((1, MANY), (1, FEW)),
    "a shared image to tokens of many prompts": ((1, MANY), (5, FEW)),
    "tokens to themselves": ((5, FEW), (5, FEW)),
}


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("sides", SIDES)
def test_decoder_attention_equals_the_plain_formula(sides, downsample):
    module, variables, inputs = attention_case(*SIDES[sides], downsample=downsample)
    actual = module.apply(variables, *inputs, None, True)
    np.testing.assert_allclose(actual, plain_attention(variables["params"], *inputs), atol=2e-6)


@pytest.mark.parametrize("sides", [name for name in SIDES if SIDES[name][1][1] == FEW])
def test_masked_keys_take_no_part_in_decoder_attention(sides):
    module, variables, (q, k, v) = attention_case(*SIDES[sides])
    key_mask = jnp.ones(k.shape[:3], bool).at[:, ::2, -1].set(False)
    actual = module.apply(variables, q, k, v, key_mask, True)
    np.testing.assert_allclose(actual, plain_attention(variables["params"], q, k, v, key_mask), atol=2e-6)
    changed = module.apply(variables, q, k.at[:, ::2, -1].add(9.0), v.at[:, ::2, -1].add(9.0), key_mask, True)
    np.testing.assert_array_equal(actual, changed)


@pytest.mark.parametrize("sides", SIDES)
def test_gradients_of_decoder_attention_equal_those_of_the_plain_formula(sides):
    module, variables, inputs = attention_case(*SIDES[sides])
    target = jax.random.normal(jax.random.key(7), module.apply(variables, *inputs, None, True).shape)

    def loss(params, *inputs):
        return (module.apply({"params": params}, *inputs, None, True) * target).sum()

    def plain_loss(params, *inputs):
        return (plain_attention(params, *inputs) * target).sum()

    actual = jax.grad(loss, (0, 1, 2, 3))(variables["params"], *inputs)
    expected = jax.grad(plain_loss, (0, 1, 2, 3))(variables["params"], *inputs)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=3e-5), actual, expected)


def test_both_forms_of_encoder_attention_equal_explicit_bias():
    B, h, w, heads, d = 2, 3, 5, 2, 4
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (B, h * w, heads, d)) for key in keys[:3])
    rel_h, rel_w = jax.random.normal(keys[3], (2 * h - 1, d)), jax.random.normal(keys[4], (2 * w - 1, d))
    expected = np.zeros((B, h * w, heads, d))
    for i in range(h * w):
        logits = np.einsum("bnd,bknd->bnk", q[:, i], k) / np.sqrt(d)
        for j in range(h * w):
            bias = rel_h[i // w - j // w + h - 1] + rel_w[i % w - j % w + w - 1]
            logits[:, :, j] += q[:, i] @ bias
        expected[:, i] = np.einsum("bnk,bknd->bnd", jax.nn.softmax(logits, -1), v)
    folded_q, folded_k = fold_relative_positions(q, k, rel_h, rel_w, (h, w))
    np.testing.assert_allclose(attend(folded_q, folded_k, v), expected, atol=1e-5)
    for elements in (1, h * w * h * w):  # a row at a time, and all
        in_rows = attend_in_cache(q, k, v, rel_h, rel_w, (h, w), elements)
        np.testing.assert_allclose(in_rows, expected, atol=1e-5)


def test_gelu_and_its_gradient_equal_the_library_formula():
    x = jnp.linspace(-12.0, 12.0, 4001)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    slope, expected = jax.vmap(jax.grad(gelu))(x), jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(slope, expected, atol=1e-6)


@pytest.fixture(scope="module")
def small_model():
    encoder = dataclasses.replace(TINY.encoder, image_size=64, depth=1, global_attention_blocks=())
    config = dataclasses.replace(TINY, encoder=encoder)
    return config, init_params(config, jax.random.key(0))


@pytest.mark.parametrize("prompts_per_image", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_prompts_decoded_together_equal_prompts_decoded_alone(small_model, prompts_per_image):
    config, params = small_model
    B, Q, grid = 2, prompts_per_image, config.grid_size
    embeddings = jax.random.normal(jax.random.key(1), (B, grid, grid, config.prompt_dim))
    points = jax.random.uniform(jax.random.key(2), (B, Q, 3, 2)) * config.image_size
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT, PAD]), (B, Q, 3))

    @jax.jit
    def decode(embeddings, prompts):
        return decode_masks(params, embeddings, encode_prompts(params, prompts, config), config)

    together = decode(embeddings, Prompts(points, labels))
    for b in range(B):
        for i in range(Q):
            one = Prompts(points[b : b + 1, i : i + 1, :2], labels[b : b + 1, i : i + 1, :2])
            alone = decode(embeddings[b : b + 1], one)
            np.testing.assert_allclose(together.low_res_logits[b, i], alone.low_res_logits[0, 0], atol=2e-5)
            np.testing.assert_allclose(together.iou_predictions[b, i], alone.iou_predictions[0, 0], atol=2e-5)
