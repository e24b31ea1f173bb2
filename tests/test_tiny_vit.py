"""TinyViT as an image encoder: its maps are PyTorch's, its published files load and are written, and it learns."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from cases.tiny_vit import ENCODER, MODEL, pytorch_maps
from cases.training import make_batch, make_config
from sam_jax.checkpoints import SAM, export_checkpoint, load_checkpoint
from sam_jax.checkpoints.hub import RELEASES
from sam_jax.config import MOBILE_SAM, FinetuneConfig, ParallelConfig, SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling import encode_maps, init_params, map_shapes
from sam_jax.modeling.encoders import tiny_vit
from sam_jax.training.flops import encoder_flops
from sam_jax.training.loop import compile_program
from sam_jax.training.sam import sam_task

PREFIX = "image_encoder."


@pytest.fixture(scope="module")
def params():
    """Random params, with statistics of batch norms and biases that are not those of an untrained model."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32),
        init_params(MODEL, jax.random.key(0)),
    )


def test_the_maps_are_those_of_pytorch_stage_by_stage(params):
    images = np.random.default_rng(0).normal(size=(2, 80, 80, 3)).astype(np.float32)
    state = SAM.state_from_params(params, MODEL, SAM.naming("official"))
    own = {name.removeprefix(PREFIX): torch.tensor(x) for name, x in state.items() if name.startswith(PREFIX)}
    with torch.no_grad():
        theirs = pytorch_maps(own, torch.from_numpy(images.transpose(0, 3, 1, 2)), ENCODER)
    ours = jax.jit(lambda params: encode_maps(params, jnp.asarray(images), MODEL, tuple(theirs)))(params)
    assert [ours[name].shape[1:] for name in theirs] == [(20, 20, 8), (10, 10, 12), (5, 5, 16), (5, 5, 24)]
    for name, expected in theirs.items():
        expected = expected.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours[name], expected, atol=2e-6 * np.abs(expected).max(), err_msg=name)


def test_a_published_file_is_known_by_its_tensors_and_comes_back_bit_by_bit(params, tmp_path):
    config = dataclasses.replace(MODEL, prompt_dim=256, decoder_heads=8, name="custom")
    config = dataclasses.replace(config, encoder=dataclasses.replace(ENCODER, image_size=1024))
    whole = jax.device_get(init_params(config, jax.random.key(1)))
    state = SAM.state_from_params(whole, config, SAM.naming("official"))
    published = {name: torch.tensor(value) for name, value in state.items()}
    counted = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in state}
    torch.save(published | {n: x for n, x in counted.items() if n.endswith("tracked")}, tmp_path / "mobile.pt")
    loaded, found = load_checkpoint(tmp_path / "mobile.pt")
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, loaded, whole)
    export_checkpoint(tmp_path / "again.pth", loaded, found)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], value) for name, value in published.items())
    with pytest.raises(UserError, match="the tiny_vit encoder has no Hugging Face checkpoint format"):
        export_checkpoint(tmp_path / "folder", loaded, found)


def test_mobile_sam_has_the_published_names_and_numbers():
    shapes = SAM.foreign_tensors(MOBILE_SAM, SAM.naming("official"))
    sizes = {tensor.name: int(np.prod(tensor.shape)) for tensor in shapes}
    learned = {name: size for name, size in sizes.items() if not name.endswith(("running_mean", "running_var"))}
    buffer = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert sum(learned.values()) - learned[buffer] == 10_130_092  # parameters of the original
    assert "image_encoder.layers.2.blocks.5.attn.attention_biases" in learned
    assert "image_encoder.layers.1.downsample.conv2.bn.weight" in learned
    assert map_shapes(MOBILE_SAM)["embedding"] == (64, 64, 256)
    assert RELEASES["mobile_sam"].config == MOBILE_SAM
    assert SamConfig.from_json(MOBILE_SAM.to_json()) == MOBILE_SAM
    assert 70e9 < encoder_flops(MOBILE_SAM) < 90e9


def test_the_operations_that_are_counted_are_those_that_xla_counts():
    images = jax.ShapeDtypeStruct((1, 80, 80, 3), np.float32)

    def counted(depths):
        config = dataclasses.replace(ENCODER, depths=depths)
        model = dataclasses.replace(MODEL, encoder=config)
        shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
        lowered = jax.jit(lambda p, x: encode_maps(p, x, model, ("last",))).lower(shapes, images)
        return lowered.compile().cost_analysis()["flops"], tiny_vit.flops(config)

    (xla, ours), (deeper_xla, deeper) = counted((1, 2, 1, 1)), counted((1, 2, 3, 1))
    assert ours < xla < 2 * ours  # norms and activations come on top
    assert 0.6 < (deeper - ours) / (deeper_xla - xla) < 1


@pytest.mark.parametrize("mode", ["mesh", "pmap"])
def test_it_trains_over_eight_devices_with_its_statistics_as_they_are(params, mode):
    config = make_config(model=MODEL, finetune=FinetuneConfig(), parallel=ParallelConfig(mode, 8, 1), drop_path=0.2)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
    program = compile_program(sam_task(config, params), params)
    start = program.init(params)
    batch = make_batch()
    batch = batch._replace(images=np.pad(batch.images, ((0, 0), (0, 16), (0, 16), (0, 0))))
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4), batch)
    before = flatten_dict(jax.device_get(start.params), sep="/")
    state, metrics = program.step(start, batch, program.replicate(jax.random.key(1)))
    assert np.isfinite(np.asarray(jax.device_get(metrics["grad_norm"]))).all()
    after = flatten_dict(jax.device_get(state.params), sep="/")
    assert not any(name.endswith(("/mean", "/var")) for name in after)
    changed = {name for name in after if np.any(before[name] != after[name])}
    parts = (
        "patch_embed_seq_0/c",
        "layers_0/blocks_0/conv2/c",
        "layers_1/blocks_1/attn/qkv",
        "layers_3/blocks_0/mlp/fc1",
    )
    for part in parts:
        assert f"image_encoder/{part}/kernel" in changed, part


def test_layers_name_every_param_of_the_trunk_but_the_classifier(params):
    names = [name for name in flatten_dict(params["image_encoder"], sep="/") if not name.startswith("neck_")]
    layers = tiny_vit.layers(ENCODER)
    assert len(layers) == 1 + sum(ENCODER.depths)
    hits = {name: [i for i, layer in enumerate(layers) if re.search(layer, name)] for name in names}
    assert {name for name, found in hits.items() if len(found) != 1} == {
        "head/kernel",
        "head/bias",
        "norm_head/scale",
        "norm_head/bias",
    }
