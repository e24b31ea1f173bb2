"""Conversion loses nothing in any direction, and says what is wrong with a file that does not fit."""

import contextlib
import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from cases.models import TINY
from sam_jax import files
from sam_jax.checkpoints import (
    SAM,
    convert_checkpoint,
    expected_shapes,
    export_checkpoint,
    family,
    foreign_shapes,
    load_checkpoint,
    load_everything_options,
    load_model,
    params_from_state,
    published,
    save_checkpoint,
    state_from_params,
)
from sam_jax.checkpoints.huggingface import config_from_huggingface, config_to_huggingface, preprocessor_to_huggingface
from sam_jax.checkpoints.sam import SHARED_MATRIX, SHARED_MATRIX_ALIAS, guess_config
from sam_jax.config import SIZES, VIT_B, VIT_H, VIT_L, EverythingOptions, ViTConfig
from sam_jax.errors import UserError
from sam_jax.modeling import init_params

# No published number in it, so that no default can stand in for one.
ODD = dataclasses.replace(
    TINY,
    name="odd",
    encoder=ViTConfig(
        image_size=48,
        pixel_mean=(1.5, 2.25, 100.1),
        pixel_std=(51.0, 52.5, 53.7),
        patch_size=8,
        dim=24,
        depth=2,
        heads=3,
        mlp_ratio=3.0,
        window_size=5,
        global_attention_blocks=(1,),
    ),
    prompt_dim=16,
    mask_channels=8,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_dim=20,
    num_multimask_outputs=2,
    iou_head_depth=4,
    iou_head_hidden_dim=12,
)
GUESSED = dataclasses.replace(TINY, name="custom", prompt_dim=256, decoder_heads=8)  # its shapes tell all of it


@pytest.fixture(scope="module")
def params():
    """Returns params of ODD, every number different from most others."""
    random = np.random.default_rng(0)
    shapes = expected_shapes(ODD).items()
    return unflatten_dict({name: random.normal(size=shape).astype(np.float32) for name, shape in shapes}, sep="/")


@pytest.fixture
def ours(params, tmp_path):
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, params, ODD)
    return path


def with_colours_of(model, config):
    """Returns the encoder of `config` with the colour normalisation of `model`."""
    colours = {"pixel_mean": model.encoder.pixel_mean, "pixel_std": model.encoder.pixel_std}
    return dataclasses.replace(config.encoder, **colours)


def assert_same(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("other", ["official.pth", "official.pt", "huggingface"])
def test_there_and_back_is_bit_exact(ours, params, tmp_path, other):
    convert_checkpoint(ours, tmp_path / other)
    convert_checkpoint(tmp_path / other, tmp_path / "back.safetensors")
    back, config = load_checkpoint(tmp_path / "back.safetensors")
    assert_same(back, params)
    assert config == ODD


def test_the_three_formats_in_a_circle_are_bit_exact(ours, params, tmp_path):
    convert_checkpoint(ours, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "folder")
    convert_checkpoint(tmp_path / "folder", tmp_path / "b.pth")
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_same(load_checkpoint(tmp_path / "folder" / "model.safetensors")[0], params)  # or the file in it


def test_a_written_folder_is_a_hugging_face_model(ours, params, tmp_path):
    convert_checkpoint(ours, tmp_path / "folder")
    model, info = transformers.SamModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or misshapen
    state = {name: torch.from_numpy(array) for name, array in state_from_params(params, ODD, "huggingface").items()}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    model.load_state_dict(state, strict=True)


def test_a_folder_saved_by_hugging_face_is_read(params, tmp_path):
    model = transformers.SamModel(transformers.SamConfig(**config_to_huggingface(ODD)))
    model.save_pretrained(tmp_path / "folder")
    loaded, config = load_checkpoint(tmp_path / "folder")
    assert dataclasses.replace(config, name="odd", encoder=with_colours_of(ODD, config)) == ODD
    kernel = loaded["mask_decoder"]["output_upscaling_0"]["kernel"]  # (h, w, in, out) of a transposed convolution
    weight = model.mask_decoder.upscale_conv1.weight.detach().numpy()
    np.testing.assert_array_equal(kernel[1, 0], weight[:, :, 1, 0])


@pytest.mark.parametrize(("config", "entries"), [(VIT_B, 314), (VIT_L, 482), (VIT_H, 594)], ids=lambda x: str(x)[:20])
def test_published_sizes_have_the_official_names_and_shapes(config, entries):
    shapes = foreign_shapes(config, "official")
    D, d = config.encoder.dim, config.encoder.dim // config.encoder.heads
    last = config.encoder.depth - 1
    assert len(shapes) == entries
    expected = {
        "image_encoder.pos_embed": (1, 64, 64, D),
        "image_encoder.patch_embed.proj.weight": (D, 3, 16, 16),
        f"image_encoder.blocks.{last}.attn.rel_pos_h": (127, d),
        "image_encoder.blocks.0.attn.rel_pos_w": (27, d),
        f"image_encoder.blocks.{last}.attn.qkv.weight": (3 * D, D),
        f"image_encoder.blocks.{last}.mlp.lin2.weight": (D, 4 * D),
        "image_encoder.neck.0.weight": (256, D, 1, 1),
        "image_encoder.neck.3.bias": (256,),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128),
        "prompt_encoder.point_embeddings.3.weight": (1, 256),
        "prompt_encoder.not_a_point_embed.weight": (1, 256),
        "prompt_encoder.no_mask_embed.weight": (1, 256),
        "prompt_encoder.mask_downscaling.6.weight": (256, 16, 1, 1),
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight": (256, 128),
        "mask_decoder.transformer.layers.0.mlp.lin1.weight": (2048, 256),
        "mask_decoder.transformer.final_attn_token_to_image.q_proj.bias": (128,),
        "mask_decoder.transformer.norm_final_attn.weight": (256,),
        "mask_decoder.mask_tokens.weight": (4, 256),
        "mask_decoder.iou_token.weight": (1, 256),
        "mask_decoder.output_upscaling.0.weight": (256, 64, 2, 2),
        "mask_decoder.output_upscaling.3.weight": (64, 32, 2, 2),
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight": (32, 256),
        "mask_decoder.iou_prediction_head.layers.2.weight": (4, 256),
    }
    assert expected.items() <= shapes.items()


@pytest.mark.parametrize("config", [VIT_B, VIT_L, VIT_H], ids=lambda config: config.name)
def test_published_sizes_load_strictly_into_hugging_face_by_name_and_shape(config):
    with torch.device("meta"):
        state = transformers.SamModel(transformers.SamConfig(**config_to_huggingface(config))).state_dict()
    assert foreign_shapes(config, "huggingface") == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("config", [*SIZES.values(), ODD], ids=lambda config: config.name)
def test_the_config_survives_hugging_face(config):
    content = transformers.SamConfig(**config_to_huggingface(config)).to_dict()
    content["_name_or_path"] = config.name
    content = json.loads(json.dumps(content))
    preprocessor = json.loads(json.dumps(preprocessor_to_huggingface(config)))
    assert config_from_huggingface(content, preprocessor) == config


def test_hugging_face_defaults_are_vit_b():
    assert config_from_huggingface(transformers.SamConfig().to_dict()) == VIT_B
    assert config_from_huggingface({"model_type": "sam"}) == VIT_B
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_dim": 4096}
    large["global_attn_indexes"] = [5, 11, 17, 23]
    assert config_from_huggingface({"model_type": "sam", "vision_config": large}) == VIT_L


def test_the_processor_of_a_written_folder_scales_colours_as_we_do(ours, tmp_path):
    convert_checkpoint(ours, tmp_path / "folder")
    content = json.loads((tmp_path / "folder" / "preprocessor_config.json").read_text())
    np.testing.assert_allclose(np.multiply(content["image_mean"], 255), ODD.encoder.pixel_mean)
    assert content["size"] == {"longest_edge": 48}
    assert content["pad_size"] == {"height": 48, "width": 48}


HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


@pytest.mark.parametrize("newer", [True, False])
def test_the_colours_of_a_folder_are_those_of_the_file_that_transformers_reads(ours, tmp_path, newer):
    folder = tmp_path / "folder"
    convert_checkpoint(ours, folder)
    processor = transformers.SamImageProcessor.from_pretrained(folder)
    processor.image_mean, processor.image_std = HALF.values()
    if newer:  # the older file stays, and says something else
        transformers.SamProcessor(processor).save_pretrained(folder)
        assert (folder / "preprocessor_config.json").exists()
    else:
        (folder / "processor_config.json").unlink(missing_ok=True)
        processor.save_pretrained(folder)
    config = load_checkpoint(folder).config
    assert (config.encoder.pixel_mean, config.encoder.pixel_std) == ((127.5,) * 3, (63.75,) * 3)
    convert_checkpoint(ours, folder, overwrite=True)
    assert load_checkpoint(folder).config == ODD


@pytest.mark.parametrize(
    ("change", "colours"),
    [
        (HALF, (127.5, 63.75)),
        (HALF | {"do_normalize": False}, (0.0, 255.0)),
        (HALF | {"do_rescale": False}, (0.5, 0.25)),
        (HALF | {"rescale_factor": 1 / 127.5}, (63.75, 31.875)),
        (HALF | {"size": 48, "pad_size": 48, "do_center_crop": None}, (127.5, 63.75)),
    ],
    ids=str,
)
def test_how_a_processor_scales_colours_is_taken(change, colours):
    content, processor = config_to_huggingface(ODD), preprocessor_to_huggingface(ODD) | change
    encoder = config_from_huggingface(content, processor).encoder
    np.testing.assert_allclose([encoder.pixel_mean[0], encoder.pixel_std[2]], colours)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"do_resize": False}, "do_resize must be true"),
        ({"do_pad": False}, "do_pad must be true"),
        ({"size": {"longest_edge": 1024}}, "size must be {'longest_edge': 48}"),
        ({"size": {"height": 48, "width": 48}}, "size must be"),
        ({"pad_size": {"height": 48, "width": 64}}, "pad_size must be"),
        ({"resample": 3}, "resample must be 2, got 3"),
        ({"do_center_crop": True}, "do_center_crop must be false"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order must be false"),
        ({"image_mean": "abc"}, "image_mean and image_std of three numbers"),
        ({"image_mean": [0.5, 0.5]}, "image_mean and image_std of three numbers"),
        ({"image_std": [0.5, None, 0.5]}, "image_mean and image_std of three numbers"),
        ({"image_std": [0, 0, 0]}, "pixel_std"),
        ({"image_mean": [float("nan")] * 3}, "pixel_mean"),
        ({"rescale_factor": "x"}, "rescale_factor"),
    ],
    ids=str,
)
def test_settings_of_a_processor_that_we_do_not_have_are_refused(change, problem):
    content, processor = config_to_huggingface(ODD), preprocessor_to_huggingface(ODD) | change
    with pytest.raises(UserError, match=problem):
        config_from_huggingface(content, processor)


@pytest.mark.parametrize("value", [3, "abc", [1], {"hidden_size": "a"}, {"hidden_size": 0}, {"hidden_size": 1e400}])
def test_sections_of_a_config_of_other_kinds_are_refused(value):
    with pytest.raises(UserError, match=r"config\.json"):
        config_from_huggingface({"model_type": "sam", "vision_config": value})


def test_a_folder_is_replaced_at_once(ours, params, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    other = dataclasses.replace(ODD, encoder=with_colours_of(VIT_B, ODD))
    export_checkpoint(folder, params, other)
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}

    def fail(*_):
        assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
        raise OSError("disk full")

    real = published.write
    monkeypatch.setattr(published, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(ours, folder, overwrite=True)
    assert load_checkpoint(folder).config == other
    monkeypatch.setattr(published, "write", real)
    for exchange in (files._exchange, lambda *_: False):
        monkeypatch.setattr(files, "_exchange", exchange)
        convert_checkpoint(ours, folder, overwrite=True)
        assert load_checkpoint(folder).config == ODD
        assert (folder / "notes" / "a.txt").read_text() == "mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "ours.safetensors"]


def test_options_that_our_model_lacks_are_all_named():
    content = {
        "model_type": "sam",
        "vision_config": {"use_rel_pos": False, "hidden_act": "relu"},
        "prompt_encoder_config": {"image_size": 512},
    }
    with pytest.raises(ValueError, match=r"use_rel_pos(.|\n)*") as error:
        config_from_huggingface(content)
    for part in ("vision_config.use_rel_pos", "vision_config.hidden_act", "prompt_encoder_config.image_size"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="model_type 'sam'"):
        config_from_huggingface({"model_type": "sam2"})


@pytest.mark.parametrize("change", [{"iou_head_depth": 1}, {"decoder_attention_downsample": 1}])
def test_what_hugging_face_cannot_express_is_refused(change):
    (field,) = change
    with pytest.raises(ValueError, match=field):
        config_to_huggingface(dataclasses.replace(ODD, **change))


def test_a_predicted_iou_that_sees_the_mask_stays_in_our_own_format(tmp_path):
    config = dataclasses.replace(TINY, iou_sees_mask=True)
    params = init_params(config, jax.random.key(0))
    for name in ("model.pth", "folder"):
        with pytest.raises(UserError, match="no other format has iou_sees_mask"):
            export_checkpoint(tmp_path / name, params, config)
    save_checkpoint(tmp_path / "model.safetensors", params, config)
    assert load_checkpoint(tmp_path / "model.safetensors")[1] == config


@pytest.mark.parametrize("naming", ["official", "huggingface"])
def test_missing_extra_and_misshapen_tensors_are_reported_together(params, naming):
    state = state_from_params(params, ODD, naming)
    missing = "mask_decoder.iou_token.weight"
    misshapen = {"official": "image_encoder.neck.2.weight", "huggingface": "vision_encoder.neck.conv2.weight"}[naming]
    del state[missing]
    state["head.weight"] = np.zeros((7, 3), np.float32)
    state[misshapen] = state[misshapen][..., :2]
    with pytest.raises(ValueError, match="does not fit") as error:
        params_from_state(state, ODD, naming, "some.pth")
    message = str(error.value)
    assert "some.pth" in message
    assert f"missing {missing} (1, 16)" in message
    assert "extra head.weight (7, 3)" in message
    assert f"{misshapen} has shape (16, 16, 3, 2), expected (16, 16, 3, 3)" in message


def test_two_different_copies_of_the_fourier_matrix_are_refused(params):
    state = state_from_params(params, ODD, "huggingface")
    state[SHARED_MATRIX_ALIAS] = state[SHARED_MATRIX] + 1
    with pytest.raises(ValueError, match=SHARED_MATRIX):
        params_from_state(state, ODD, "huggingface")
    del state[SHARED_MATRIX]  # old files have the other name alone
    params_from_state(state, ODD, "huggingface")


def test_a_training_scripts_file_in_half_precision_is_read(tmp_path):
    random = np.random.default_rng(0)
    state = {
        name: torch.from_numpy(random.normal(size=shape).astype(np.float16))
        for name, shape in foreign_shapes(GUESSED, "official").items()
    }
    torch.save({"model": state, "epoch": 3}, tmp_path / "some.pth")
    params, config = load_checkpoint(tmp_path / "some.pth")
    assert config == GUESSED
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("naming", ["official", "huggingface"])
@pytest.mark.parametrize("config", SIZES.values(), ids=lambda config: config.name)
def test_a_known_size_is_found_by_its_shapes(config, naming):
    assert guess_config(foreign_shapes(config, naming), "a file", naming) == config


def test_an_official_file_of_another_size_gives_its_config_by_its_shapes():
    widths = {"prompt_dim": VIT_B.prompt_dim, "decoder_heads": VIT_B.decoder_heads}
    config = dataclasses.replace(ODD, name="custom", encoder=with_colours_of(VIT_B, ODD), **widths)
    assert guess_config(foreign_shapes(config, "official"), "a file", "official") == config
    half = dataclasses.replace(VIT_B, name="custom").with_image_size(512)
    assert guess_config(foreign_shapes(half, "official"), "a file", "official") == half


def test_shapes_that_leave_the_heads_of_the_decoder_open_need_a_config(ours, params, tmp_path):
    torch.save(
        {name: torch.tensor(v) for name, v in state_from_params(params, ODD, "official").items()}, tmp_path / "odd.pth"
    )
    with pytest.raises(ValueError, match=r"odd\.pth has a decoder of width 16.*give the config"):
        load_checkpoint(tmp_path / "odd.pth")
    loaded, config = load_checkpoint(tmp_path / "odd.pth", SAM, ODD)
    assert config == ODD
    assert_same(loaded, params)


def test_an_official_file_that_fits_no_size_is_compared_with_the_nearest_one():
    shapes = foreign_shapes(VIT_B, "official")
    del shapes["mask_decoder.iou_token.weight"]
    assert guess_config(shapes, "a file", "official") == VIT_B  # whose missing tensor the caller then names
    with pytest.raises(ValueError, match=r"\(1, 6, 6, 24\).*give it"):
        guess_config({"image_encoder.pos_embed": (1, 6, 6, 24)}, "a file", "official")


def test_a_pth_holds_its_config_where_official_code_sees_tensors_alone(ours, params, tmp_path):
    convert_checkpoint(ours, tmp_path / "x.pth")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["ours.safetensors", "x.pth"]
    assert torch.load(tmp_path / "x.pth", weights_only=True).keys() == foreign_shapes(ODD, "official").keys()
    assert torch.load(tmp_path / "x.pth", weights_only=True, mmap=True).keys() == foreign_shapes(ODD, "official").keys()
    assert load_checkpoint(tmp_path / "x.pth").config == ODD


def test_the_config_that_earlier_versions_wrote_beside_a_pth_is_read_and_then_replaced(ours, params, tmp_path):
    path, beside = tmp_path / "x.pth", tmp_path / "x.pth.config.json"
    torch.save({name: torch.tensor(v) for name, v in state_from_params(params, ODD, "official").items()}, path)
    beside.write_text(ODD.to_json())
    assert load_checkpoint(path).config == ODD
    beside.write_text("{")
    with pytest.raises(UserError, match=r"x\.pth\.config\.json"):
        load_checkpoint(path)
    convert_checkpoint(ours, path, overwrite=True)
    assert not beside.exists()
    assert load_checkpoint(path).config == ODD


def test_a_config_that_is_not_the_files_own_is_refused(ours, tmp_path):
    convert_checkpoint(ours, tmp_path / "folder")
    convert_checkpoint(ours, tmp_path / "odd.pth")
    for path in (ours, tmp_path / "folder", tmp_path / "odd.pth"):
        assert load_checkpoint(path, SAM, ODD)[1] == ODD
        with pytest.raises(ValueError, match="decoder_heads"):
            load_checkpoint(path, SAM, dataclasses.replace(ODD, decoder_heads=4))


def test_options_of_everything_mode_lie_in_our_file_and_stay_in_it(ours, params, tmp_path):
    assert load_everything_options(ours) == EverythingOptions()  # as in files of earlier versions
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    convert_checkpoint(ours, first, everything=EverythingOptions(pred_iou_thresh=0.4, crop_n_layers=1))
    convert_checkpoint(first, second, everything=EverythingOptions(pred_iou_thresh=0.5), dtype=np.float16)
    assert load_everything_options(second) == EverythingOptions(pred_iou_thresh=0.5, crop_n_layers=1)
    assert second.stat().st_size < 0.6 * first.stat().st_size
    assert load_checkpoint(first).config == ODD
    assert_same(load_checkpoint(first).params, params)
    convert_checkpoint(first, tmp_path / "folder")  # which has no place for them
    assert load_everything_options(tmp_path / "folder") == EverythingOptions()
    with pytest.raises(UserError, match=r"\*\.safetensors, which alone holds options of everything mode"):
        convert_checkpoint(first, tmp_path / "x.pth", everything=EverythingOptions(crop_n_layers=1))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"output_mode": "png"}', r"unknown \['output_mode'\]"),
        ('{"point_grids": [[0, 0]]}', r"unknown \['point_grids'\]"),
        ('{"pred_iou_thresh": "0.5"}', "pred_iou_thresh to be a number from 0 to 1, got '0.5'"),
        ('{"pred_iou_thresh": NaN}', "pred_iou_thresh"),
        ('{"stability_score_thresh": true}', "stability_score_thresh"),
        ('{"stability_score_offset": -1}', "stability_score_offset"),
        ('{"box_nms_thresh": 1.01}', "box_nms_thresh"),
        ('{"crop_nms_thresh": [0.5]}', "crop_nms_thresh"),
        ('{"crop_n_layers": 12}', "crop_n_layers to be a whole number from 0 to 3, got 12"),
        ('{"points_per_side": 1000000000}', "points_per_side"),
        ('{"points_per_side": 16.5}', "points_per_side"),
        ('{"min_mask_region_area": 1e300}', "min_mask_region_area"),
        ("[]", "expected a JSON object"),
        ("{", "expected the JSON"),
        pytest.param("[" * 100_000, "expected the JSON", id="deep"),
        pytest.param('{"crop_n_layers": 1' + "0" * 5000 + "}", "expected the JSON", id="long"),
    ],
)
def test_options_of_everything_mode_that_cannot_be_are_named_with_their_file(ours, text, problem):
    with safe_open(ours, "numpy") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(arrays, ours, metadata | {"sam_jax_everything": text})
    with pytest.raises(UserError, match=rf"ours\.safetensors: in its metadata 'sam_jax_everything': .*{problem}"):
        load_model(ours)


def changed(path, **changes):
    """Changes fields of the config in the metadata of a file of ours; the encoder's by `encoder__NAME`."""
    with safe_open(path, "numpy") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    fields = json.loads(metadata["sam_jax_config"])
    for name, value in changes.items():
        (fields["encoder"] if name.startswith("encoder__") else fields)[name.removeprefix("encoder__")] = value
    save_file(arrays, path, metadata | {"sam_jax_config": json.dumps(fields)})


def test_every_number_of_a_model_in_a_file_is_refused_by_name_where_it_cannot_be(ours, monkeypatch):
    def fail(*_):
        raise AssertionError("a model was traced for a config that cannot be")

    monkeypatch.setattr(family, "param_shapes", fail)
    fields, good = ODD.to_fields(), ours.read_bytes()
    numbers = [name for name, value in fields.items() if isinstance(value, int) and not isinstance(value, bool)]
    numbers += [f"encoder__{name}" for name, value in fields["encoder"].items() if isinstance(value, int | float)]
    assert len(numbers) > 12
    for name in numbers:
        for value in (-1, 10**9, 1e9, 10**400, 2.5e20, float("nan"), float("inf"), "3", None, [1], {}, True):
            changed(ours, **{name: value})
            with pytest.raises(UserError, match=rf"ours\.safetensors: .*{name.removeprefix('encoder__')}"):
                load_checkpoint(ours)
            ours.write_bytes(good)
    for name in ("encoder__pixel_mean", "encoder__pixel_std", "encoder__global_attention_blocks"):
        for value in ("abc", 3, None, [1, 2, "3"], [[1], 2, 3], [1, 2, float("nan")], {"a": 1}, [1e9] * 3):
            changed(ours, **{name: value})
            with pytest.raises(UserError, match=name.removeprefix("encoder__")):
                load_checkpoint(ours)
            ours.write_bytes(good)


@pytest.mark.parametrize(
    "change",
    [
        {"iou_head_depth": 900},
        {"decoder_depth": 100},
        {"num_multimask_outputs": 90},
        {"encoder__depth": 1000},
        {"encoder__depth": 20},
    ],
    ids=str,
)
def test_a_config_with_more_layers_than_the_file_has_tensors_is_refused_before_it_is_traced(ours, monkeypatch, change):
    monkeypatch.setattr(family, "param_shapes", lambda *_: pytest.fail("it was traced"))
    changed(ours, **change)
    with pytest.raises(UserError, match=r"has \d+ tensors, and a model with the depths of its config at least \d+"):
        load_checkpoint(ours)


@pytest.mark.parametrize("kind", ["ours", "official.pth", "huggingface"])
@pytest.mark.parametrize("value", [np.nan, -np.inf], ids=str)
def test_numbers_that_are_not_finite_are_refused_with_their_tensor(params, tmp_path, kind, value):
    flat = flatten_dict(params, sep="/")
    flat["mask_decoder/iou_token"] = np.full_like(flat["mask_decoder/iou_token"], value)
    save_checkpoint(tmp_path / "ours", unflatten_dict(flat, sep="/"), ODD)
    if kind != "ours":
        export_checkpoint(tmp_path / kind, unflatten_dict(flat, sep="/"), ODD)
    with pytest.raises(UserError, match=rf"expected finite numbers in .*{kind}.*1 of \d+ tensors.*iou_token"):
        load_checkpoint(tmp_path / kind)


def test_a_number_too_large_for_float16_is_refused(params, tmp_path):
    large = jax.tree.map(lambda value: value * 1e6, params)
    with np.errstate(over="ignore"), pytest.raises(UserError, match="to be saved as float16"):
        save_checkpoint(tmp_path / "x.safetensors", large, ODD, np.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrap", [torch.nn.Parameter, lambda tensor: tensor.requires_grad_()], ids=["Parameter", "grad"]
)
def test_tensors_that_require_gradients_load(params, tmp_path, wrap):
    state = state_from_params(params, ODD, "official")
    torch.save({name: wrap(torch.tensor(value)) for name, value in state.items()}, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth", SAM, ODD).params, params)


@pytest.mark.parametrize("odd", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2) * 1j])
def test_tensors_that_are_no_plain_arrays_are_called_so(tmp_path, odd):
    torch.save({"image_encoder.pos_embed": odd}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_what_a_wrapper_puts_before_all_names_is_left_out_with_a_word(params, tmp_path, capsys, prefix):
    state = state_from_params(params, ODD, "official")
    torch.save({"model": {prefix + name: torch.tensor(value) for name, value in state.items()}}, tmp_path / "x.pth")
    assert_same(load_checkpoint(tmp_path / "x.pth", SAM, ODD).params, params)
    assert f"x.pth: all names begin with {prefix!r}, which is left out" in capsys.readouterr().err


def test_a_flipped_byte_in_the_directory_of_a_zip_is_said(ours, tmp_path):
    convert_checkpoint(ours, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    first, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    for place in (
        first,
        first + 1,
        first + 10,
        first + 28,
        first + 30,
        first + 46,
        end - 1,
        end + 10,
        end + 13,
        end + 17,
    ):
        (tmp_path / "x.pth").write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        with contextlib.suppress(UserError):
            assert load_checkpoint(tmp_path / "x.pth", SAM, ODD).config == ODD


class Payload:
    """Unpickling one runs code: here a harmless import."""

    def __reduce__(self):
        return __import__, ("antigravity_that_does_not_exist",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pth", b""),
        ("text.pth", b"this is no checkpoint at all"),
        ("cut.pth", b"PK\x03\x04" + bytes(60)),
        ("cut.safetensors", b"\x80\x02\x00\x00\x00\x00\x00\x00{"),
        ("picture.safetensors", b"\xff\xd8\xff\xe0" + bytes(60)),
    ],
)
def test_a_file_that_is_no_checkpoint_is_called_so(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a .*checkpoint") as error:
        load_checkpoint(tmp_path / name)
    assert name in str(error.value)


def test_files_of_other_things_are_called_so(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": Payload()}, tmp_path / "code.pth")
    save_file({"b": np.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "other.pth": "image_encoder.pos_embed",
        "list.pth": "state dict.*list",
        "code.pth": "tensors alone",
        "other.safetensors": "image_encoder.pos_embed",
        "folder": "config.json",
    }.items():
        for expected in (SAM, None):
            with pytest.raises(ValueError, match=message):
                load_checkpoint(tmp_path / name, expected)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere.pth")


def test_an_existing_destination_stays_unless_told(ours, tmp_path):
    for name in ("x.pth", "x.safetensors", "folder"):
        convert_checkpoint(ours, tmp_path / name)
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name in ("x.pth", "x.safetensors", "folder"):
        with pytest.raises(FileExistsError, match=name):
            convert_checkpoint(ours, tmp_path / name)
        convert_checkpoint(ours, tmp_path / name, overwrite=True)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"model\.onnx"):
        convert_checkpoint(ours, tmp_path / "model.onnx")


def test_a_failed_conversion_leaves_nothing(ours, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(published, "save_file", fail)
    for name in ("x.pth", "folder"):
        with pytest.raises(OSError, match="disk full"):
            convert_checkpoint(ours, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.safetensors"]


def test_without_pytorch_hugging_face_works_and_pth_says_what_to_install(ours, params, tmp_path, monkeypatch):
    convert_checkpoint(ours, tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    convert_checkpoint(ours, tmp_path / "folder")
    assert_same(load_checkpoint(tmp_path / "folder")[0], params)
    for action in (
        lambda: load_checkpoint(tmp_path / "x.pth", ODD),
        lambda: convert_checkpoint(ours, tmp_path / "y.pth"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'sam_jax\[convert\]'"):
            action()
