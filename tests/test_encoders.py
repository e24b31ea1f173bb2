"""An image encoder is one file and one entry in a list; what it lacks is refused by name; old files of the ViT load."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cases import conv_encoder
from cases.conv_encoder import ConvConfig
from cases.models import DETECTOR, SMALL
from cases.training import make_batch, make_config
from sam_jax.checkpoints import export_checkpoint, load_checkpoint, load_pretrained_encoder
from sam_jax.config import VIT_B, ParallelConfig, PromptConfig, SamConfig, ViTConfig
from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.detector import extract_features, init_detector
from sam_jax.errors import UserError
from sam_jax.model import Sam, model_identity, params_digest
from sam_jax.modeling import encode_image, encode_maps, encoders, init_params, map_shapes, predict_masks
from sam_jax.modeling.resize import resize_positions
from sam_jax.training.flops import encoder_flops
from sam_jax.training.loop import compile_program
from sam_jax.training.optimizer import layer_scales
from sam_jax.training.sam import sam_task
from sam_jax.types import Prompts

MODEL = dataclasses.replace(SMALL, name="conv", encoder=ConvConfig(image_size=64))


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    """The one entry where encoders are listed."""
    monkeypatch.setattr(encoders, "ENCODERS", (*encoders.ENCODERS, conv_encoder.ENCODER))


@pytest.fixture
def params():
    return init_params(MODEL, jax.random.key(0))


def test_another_stride_gives_another_grid_and_masks_of_its_size(params):
    assert (MODEL.encoder.stride, MODEL.grid_size, MODEL.low_res_size) == (32, 2, 8)
    prompts = Prompts(jnp.full((1, 2, 1, 2), 20.0), jnp.ones((1, 2, 1), int))
    predicted = jax.eval_shape(
        functools.partial(predict_masks, config=MODEL), params, jnp.zeros((1, 64, 64, 3)), prompts
    )
    assert predicted.low_res_logits.shape == (1, 2, 4, 8, 8)


def test_maps_are_known_by_name_and_come_when_they_are_asked_for(params):
    assert map_shapes(MODEL) == {
        "stride_4": (16, 16, 8),
        "stride_8": (8, 8, 16),
        "stride_16": (4, 4, 24),
        "stride_32": (2, 2, 32),
        "last": (2, 2, 32),
        "embedding": (2, 2, 32),
    }
    vit = map_shapes(SMALL)
    assert vit == dict.fromkeys(("block_0", "block_1", "last", "embedding"), (8, 8, 32))
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    maps = encode_maps(params, images, MODEL, ("stride_8", "embedding"))
    assert {name: x.shape[1:] for name, x in maps.items()} == {n: map_shapes(MODEL)[n] for n in maps}
    np.testing.assert_array_equal(maps["embedding"], encode_image(params, images, MODEL))
    with pytest.raises(UserError, match=r"conv encoder of model 'conv'.*stride_16.*got \['block_0'\]"):
        encode_maps(params, images, MODEL, ("block_0",))


def test_nothing_is_computed_for_maps_that_nobody_asked_for(params):
    def flops(*names):
        encode = jax.jit(lambda params, images: encode_maps(params, images, MODEL, names))
        return encode.lower(params, jnp.zeros((1, 64, 64, 3))).compile().cost_analysis()["flops"]

    everything = flops(*map_shapes(MODEL))
    assert flops("stride_4") < 0.6 * everything
    assert flops("embedding") == pytest.approx(encoder_flops(MODEL), rel=0.2)  # products, and little else


def test_a_step_over_eight_devices_trains_all_but_the_statistics(params):
    config = make_config(
        model=MODEL,
        prompts=PromptConfig(point_rounds=0, refine_rounds=0),
        parallel=ParallelConfig("mesh", 2, 4),
        drop_path=0.2,
        remat=True,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    batches = [make_batch(seed) for seed in range(4)]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    program = compile_program(sam_task(config, params), params)
    state = program.init(params)
    kernel = state.params["image_encoder"]["stages_3"]["down"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    before = jax.device_get(program.whole(state))
    state, metrics = program.step(state, batch, jax.random.key(1))
    after = jax.device_get(program.whole(state))
    assert np.isfinite(metrics["grad_norm"])
    flat = functools.partial(flatten_dict, sep="/")
    assert {name for name in flat(after.frozen) if "image_encoder" in name} == {
        f"image_encoder/stages_{i}/norm/{name}" for i in range(4) for name in ("mean", "var")
    }
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before.frozen)
    for name, value in flat(after.params).items():
        if "image_encoder/" in name:
            assert (value != flat(before.params)[name]).any(), name


def test_layers_learn_at_rates_of_their_own(params):
    scales = layer_scales(params, MODEL.encoder, 0.5)
    stages = [scales["image_encoder"][f"stages_{i}"]["conv"]["kernel"] for i in range(4)]
    assert stages == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert scales["image_encoder"]["positions"] == scales["image_encoder"]["neck_0"]["kernel"] == 1.0


def test_a_larger_image_size_resizes_what_the_encoder_says(params):
    large = MODEL.with_image_size(128)
    resized = resize_positions(params, MODEL, large)
    expected = jax.eval_shape(functools.partial(init_params, large), jax.random.key(0))
    assert jax.tree.map(jnp.shape, resized) == jax.tree.map(jnp.shape, expected)
    np.testing.assert_array_equal(
        resized["image_encoder"]["stages_0"]["down"]["kernel"], params["image_encoder"]["stages_0"]["down"]["kernel"]
    )


def test_our_own_file_holds_it_and_other_formats_are_refused_by_name(params, tmp_path):
    export_checkpoint(tmp_path / "conv.safetensors", jax.device_get(params), MODEL)
    loaded, config = load_checkpoint(tmp_path / "conv.safetensors")
    assert config == MODEL
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))
    for name, format_name in (("conv.pth", "official"), ("folder", "Hugging Face")):
        with pytest.raises(UserError, match=f"the conv encoder has no {format_name} checkpoint format"):
            export_checkpoint(tmp_path / name, params, MODEL)
        assert not (tmp_path / name).exists()
    with pytest.raises(UserError, match="the conv encoder has no published pre-training"):
        load_pretrained_encoder(tmp_path / "mae.pth", params, MODEL.encoder)


def test_a_file_with_an_encoder_that_is_not_known_says_which_are():
    fields = MODEL.to_fields()
    fields["encoder"]["kind"] = "swin"
    with pytest.raises(UserError, match=r"image encoder of kind conv or (.* or )?vit, got 'swin'"):
        SamConfig.from_fields(fields)
    with pytest.raises(TypeError, match="SamConfig"):
        encoders.encoder_of(MODEL)


def test_a_detector_stands_on_any_encoder():
    config = dataclasses.replace(DETECTOR, encoder=ConvConfig(image_size=128))
    assert DetectorConfig.from_json(config.to_json()) == config
    assert (config.strides, config.sides) == ((8, 16, 32, 64, 128), (16, 8, 4, 2, 1))
    shapes = jax.eval_shape(functools.partial(init_detector, config), jax.random.key(0))
    assert not any(name.startswith("neck") for name in shapes["image_encoder"])
    maps = jax.eval_shape(functools.partial(extract_features, config=config), shapes, jnp.zeros((1, 128, 128, 3)))
    assert [x.shape[1] for x in maps] == list(config.sides)


# Files from before encoders had configs

OLD_VIT_B = (
    '{"name": "vit_b", "image_size": 1024, "patch_size": 16, "encoder_dim": 768, "encoder_depth": 12, "encoder_heads": '
    '12, "encoder_mlp_ratio": 4.0, "window_size": 14, "global_attention_blocks": [2, 5, 8, 11], "prompt_dim": 256, '
    '"mask_channels": 16, "decoder_depth": 2, "decoder_heads": 8, "decoder_mlp_dim": 2048, '
    '"decoder_attention_downsample": 2, "num_multimask_outputs": 3, "iou_head_depth": 3, "iou_head_hidden_dim": 256, '
    '"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}'
)


def test_configs_in_old_files_are_read():
    assert SamConfig.from_json(OLD_VIT_B) == VIT_B
    changed = json.loads(OLD_VIT_B) | {"encoder_dim": 384, "encoder_heads": 6, "image_size": 512, "text_dim": 0}
    model = SamConfig.from_fields(changed | {"name": "other", "text_encoder": ""})
    assert model.encoder == ViTConfig(image_size=512, dim=384, heads=6)
    detector = DETECTOR.to_fields() | {"encoder": changed}  # held a whole model
    assert DetectorConfig.from_fields(detector).encoder == model.encoder
    with pytest.raises(UserError, match=r"unknown \['encoder_width'\]"):
        SamConfig.from_fields(changed | {"encoder_width": 3})
    with pytest.raises(UserError, match=r"unknown \['encoder_width'\]"):
        DetectorConfig.from_fields(detector | {"encoder": changed | {"encoder_width": 3}})


def test_the_identity_of_a_model_is_that_of_old_records():
    params = {"a": np.arange(3, dtype=np.float32)}
    assert model_identity(Sam(VIT_B, params)) == params_digest(f"{OLD_VIT_B} float32", params)
    with_text = dataclasses.replace(VIT_B, text_dim=512, text_encoder="clip_b32")
    old = OLD_VIT_B[:-1] + ', "text_dim": 512, "text_encoder": "clip_b32"}'
    assert model_identity(Sam(with_text, params)) == params_digest(f"{old} float32", params)
