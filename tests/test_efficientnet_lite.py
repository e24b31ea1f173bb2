"""EfficientNet-Lite as an image encoder: its features are PyTorch's, and finer maps reach the decoder's logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from cases.efficientnet_lite import ENCODER, MODEL, pytorch_backbone
from cases.models import SMALL
from cases.training import make_batch, make_config
from sam_jax.checkpoints import export_checkpoint, load_checkpoint, load_pretrained_encoder, save_checkpoint
from sam_jax.config import SMALL as DEFAULT
from sam_jax.config import FinetuneConfig, ParallelConfig, SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling import encode_image, encode_maps, init_params, map_shapes, predict_masks
from sam_jax.modeling.common import depthwise_by_shifts
from sam_jax.modeling.image_encoder import pack_pixels
from sam_jax.modeling.mask_decoder import Upconv
from sam_jax.modeling.resize import resize_positions
from sam_jax.training.flops import encoder_flops
from sam_jax.training.loop import compile_program
from sam_jax.training.sam import initial_params, sam_task
from sam_jax.types import Prompts

STRIDES = (2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


def test_features_of_a_published_file_are_those_of_pytorch(params, images, tmp_path):
    network = pytorch_backbone(ENCODER)
    torch.save(network.state_dict(), tmp_path / "lite.pth")
    loaded = load_pretrained_encoder(tmp_path / "lite.pth", params, ENCODER)
    names = [f"stride_{stride}" for stride in STRIDES]
    ours = jax.jit(lambda params, images: encode_maps(params, images, MODEL, names))(loaded, images)
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for stride in STRIDES:
        expected = theirs[stride].numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours[f"stride_{stride}"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kept = flatten_dict(params, sep="/")
    for name, value in flatten_dict(loaded, sep="/").items():
        assert (value is kept[name]) == ("image_encoder/backbone/" not in name)


def test_a_file_of_another_variant_is_refused_by_name(params, tmp_path):
    wider = dataclasses.replace(ENCODER, widths=(4, 6, 8, 8, 12, 16, 24))
    torch.save(pytorch_backbone(wider).state_dict(), tmp_path / "lite.pth")
    with pytest.raises(UserError, match=r"_blocks\.9\._project_conv\.weight gives shape"):
        load_pretrained_encoder(tmp_path / "lite.pth", params, ENCODER)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)])
@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_depthwise_convolution_by_shifts_and_its_gradient_are_those_of_xla(kernel, stride, size):
    keys = jax.random.split(jax.random.key(0), 2)
    x, weights = jax.random.normal(keys[0], (2, *size, 3)), jax.random.normal(keys[1], (kernel, kernel, 1, 3))

    def convolve(x, weights):
        return jax.lax.conv_general_dilated(
            x,
            weights,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    expected, backward = jax.vjp(convolve, x, weights)
    found, own_backward = jax.vjp(lambda x, weights: depthwise_by_shifts(x, weights, stride), x, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    gradient = jnp.sin(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    for own, theirs in zip(own_backward(gradient), backward(gradient), strict=True):
        np.testing.assert_allclose(own, theirs, atol=2e-5)


def test_packed_pixels_lie_as_the_decoders_upscaling_lays_them_out():
    """A cell's number reaches its pixels: through two up-scalings that only copy, and by packing the pixels' own."""
    row, col = jnp.meshgrid(jnp.arange(8.0), jnp.arange(12.0), indexing="ij")
    packed = pack_pixels((100 * row + col)[None, ..., None], 2)  # (1, 2, 3, 16)
    logits = packed.reshape(1, 2, 3, 2, 2, 2, 2, 1).transpose(0, 7, 1, 3, 5, 2, 4, 6).reshape(8, 12)  # the decoder's
    np.testing.assert_array_equal(logits, 100 * row + col)
    once = pack_pixels((100 * row + col)[None, ..., None], 1)
    assert once[0, 1, 2].tolist() == [204, 205, 304, 305]
    kernel = jnp.eye(4).reshape(2, 2, 1, 4)  # of a transposed convolution: each of the 4 pixels marks its channel
    out = Upconv(1, 4, jnp.float32).apply({"params": {"kernel": kernel, "bias": jnp.zeros(4)}}, jnp.ones((1, 1)))
    np.testing.assert_array_equal(out[0], jnp.eye(4))


def test_one_array_holds_the_embedding_and_the_finer_maps(params, images):
    assert map_shapes(MODEL)["embedding"] == (4, 4, 4 * MODEL.prompt_dim)
    assert map_shapes(MODEL)["last"] == (4, 4, ENCODER.dim)
    embedding = jax.jit(lambda params: encode_image(params, jnp.asarray(images), MODEL))(params)
    assert embedding.shape == (2, 4, 4, MODEL.embedding_dim)


def test_finer_maps_change_the_logits_where_they_are(params, images):
    """A finer map of zeros is no map; a spot in one changes the logits around it alone."""
    from sam_jax.modeling import decode_masks, encode_prompts

    prompts = Prompts(jnp.full((1, 1, 1, 2), 20.0), jnp.ones((1, 1, 1), int))

    @jax.jit
    def decode(embedding):
        return decode_masks(params, embedding, encode_prompts(params, prompts, MODEL), MODEL).low_res_logits[0, 0, 0]

    D = MODEL.prompt_dim
    embedding = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4, 4 * D)).astype(np.float32))
    moved = embedding.at[0, 1, 2, 2 * D :].add(1.0)
    change = np.abs(decode(moved) - decode(embedding)) > 1e-6
    rows, cols = np.nonzero(change)
    assert set(rows) == set(range(4, 8))
    assert set(cols) == set(range(8, 12))
    plain = dataclasses.replace(MODEL, high_res_features=False)
    zeros = embedding.at[..., D:].set(0.0)
    expected = decode_masks(params, embedding[..., :D], encode_prompts(params, prompts, plain), plain)
    np.testing.assert_allclose(decode(zeros), expected.low_res_logits[0, 0, 0], atol=1e-5)


def test_an_encoder_without_finer_maps_is_refused():
    with pytest.raises(UserError, match=r"expected an encoder with maps \['stride_4', 'stride_2'\] .* vit has"):
        init_params(dataclasses.replace(SMALL, high_res_features=True, prompt_dim=32), jax.random.key(0))


def test_our_own_file_holds_the_model_and_other_formats_are_refused(params, tmp_path):
    save_checkpoint(tmp_path / "lite.safetensors", params, MODEL)
    loaded, config = load_checkpoint(tmp_path / "lite.safetensors")
    assert config == MODEL
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))
    for name, label in (("lite.pth", "official"), ("folder", "Hugging Face")):
        with pytest.raises(UserError, match=f"the efficientnet_lite encoder has no {label} checkpoint format"):
            export_checkpoint(tmp_path / name, params, MODEL)
    assert "high_res_features" not in SMALL.to_fields()
    assert SamConfig.from_json(MODEL.to_json()) == MODEL


def test_another_image_size_keeps_the_model(params):
    larger = MODEL.with_image_size(96)
    resized = resize_positions(params, MODEL, larger)
    name = "image_encoder/fusion/attention_0/attn/rel_pos_h"
    assert [flatten_dict(tree, sep="/")[name].shape for tree in (params, resized)] == [(3, 8), (5, 8)]
    images = jnp.zeros((1, 96, 96, 3))
    prompts = Prompts(jnp.full((1, 2, 1, 2), 20.0), jnp.ones((1, 2, 1), int))
    predicted = jax.eval_shape(lambda: predict_masks(resized, images, prompts, larger))
    assert predicted.low_res_logits.shape == (1, 2, 4, 24, 24)


@pytest.mark.parametrize("mode", ["mesh", "pmap"])
def test_it_trains_over_eight_devices_and_early_blocks_can_stay_frozen(params, mode):
    frozen = r"image_encoder/backbone/(stem|blocks_[0-4]/|.*/depthwise/)"
    config = make_config(
        model=MODEL,
        finetune=FinetuneConfig(trainable=rf"^(?!{frozen})"),
        parallel=ParallelConfig(mode, 8, 1),
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    program = compile_program(sam_task(config, params), params)
    start = program.init(params)
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4), make_batch())
    state, metrics = program.step(start, batch, program.replicate(jax.random.key(1)))
    assert np.isfinite(np.asarray(jax.device_get(metrics["grad_norm"]))).all()
    trained = flatten_dict(jax.device_get(state.params), sep="/")
    assert not any(name.startswith("image_encoder/backbone/stem") for name in trained)
    assert not any(name.endswith(("/mean", "/var")) for name in trained)
    assert "image_encoder/backbone/blocks_8/project/kernel" in trained
    assert "image_encoder/neck_fine_0_coarse/kernel" in trained


def test_a_run_starts_its_decoder_from_another_model(params, tmp_path):
    """That model has another encoder; what its decoder lacks or has in other shapes is named."""
    save_checkpoint(tmp_path / "start.safetensors", init_params(SMALL, jax.random.key(5)), SMALL)
    config = make_config(model=MODEL, init_decoder_from=str(tmp_path / "start.safetensors"))
    _, started, _ = initial_params(config)
    expected = init_params(SMALL, jax.random.key(5))
    for part in ("prompt_encoder", "mask_decoder"):
        jax.tree.map(np.testing.assert_array_equal, started[part], expected[part])
    deeper = dataclasses.replace(config, model=dataclasses.replace(MODEL, decoder_mlp_dim=96))
    with pytest.raises(UserError, match=r"'tiny' differs in \[.*lin1/kernel"):
        initial_params(deeper)


def test_the_default_model_is_light():
    shapes = jax.eval_shape(lambda: init_params(DEFAULT, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 2 * count < 16 * 2**20  # float16, bytes
    assert (DEFAULT.embedding_dim, DEFAULT.grid_size) == (512, 48)
    assert 11e9 < encoder_flops(DEFAULT) < 16e9
