"""Masked-autoencoder weights become the start of an encoder."""

import re

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cases.models import SMALL
from sam_jax.checkpoints import load_pretrained_encoder
from sam_jax.modeling import init_params

GRID = 5  # of the autoencoder; the encoder has 8


def mae_state(config=SMALL.encoder, patch: int = 6) -> dict[str, np.ndarray]:
    """Draws the tensors of a published file."""
    rng = np.random.default_rng(0)
    D = config.dim
    shapes = {
        "cls_token": (1, 1, D),
        "mask_token": (1, 1, 16),
        "pos_embed": (1, GRID**2 + 1, D),
        "patch_embed.proj.weight": (D, 3, patch, patch),
        "patch_embed.proj.bias": (D,),
        "norm.weight": (D,),
        "norm.bias": (D,),
        "decoder_blocks.0.norm1.weight": (16,),
    }
    for i in range(config.depth):
        for name, fan_out, fan_in in (
            ("attn.qkv", 3 * D, D),
            ("attn.proj", D, D),
            ("mlp.fc1", 4 * D, D),
            ("mlp.fc2", D, 4 * D),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (fan_out, fan_in), f"blocks.{i}.{name}.bias": (fan_out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (D,), f"blocks.{i}.{name}.bias": (D,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def params():
    return jax.device_get(init_params(SMALL, jax.random.key(0)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_positions_patches_and_blocks_come_from_the_autoencoder(params, suffix, tmp_path):
    state, path = mae_state(), tmp_path / f"mae{suffix}"
    if suffix == ".pth":
        torch.save({"model": {name: torch.from_numpy(value) for name, value in state.items()}}, path)
    else:
        save_file(state, path)
    encoder = load_pretrained_encoder(path, params, SMALL.encoder)["image_encoder"]

    def interpolate(grid: np.ndarray, side: int) -> np.ndarray:
        """Resizes the last two axes as PyTorch's bicubic does."""
        return torch.nn.functional.interpolate(
            torch.from_numpy(grid), size=(side, side), mode="bicubic", align_corners=False
        ).numpy()

    positions = state["pos_embed"][:, 1:].reshape(1, GRID, GRID, -1).transpose(0, 3, 1, 2)
    expected = interpolate(positions, 8).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(encoder["pos_embed"], expected, atol=2e-5)
    patches = interpolate(state["patch_embed.proj.weight"], 8).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(encoder["patch_embed_proj"]["kernel"], patches, atol=2e-5)
    block = encoder["blocks_1"]
    np.testing.assert_array_equal(block["attn"]["qkv"]["kernel"], state["blocks.1.attn.qkv.weight"].T)
    np.testing.assert_array_equal(block["mlp"]["lin2"]["kernel"], state["blocks.1.mlp.fc2.weight"].T)
    np.testing.assert_array_equal(block["norm1"]["scale"], state["blocks.1.norm1.weight"])
    assert not block["attn"]["rel_pos_h"].any()
    np.testing.assert_array_equal(encoder["neck_0"]["kernel"], params["image_encoder"]["neck_0"]["kernel"])


def test_positions_of_the_same_grid_are_not_touched(params, tmp_path):
    state = mae_state(patch=8)
    state["pos_embed"] = np.random.default_rng(1).normal(size=(1, 65, 32)).astype(np.float32)
    save_file(state, tmp_path / "mae.safetensors")
    encoder = load_pretrained_encoder(tmp_path / "mae.safetensors", params, SMALL.encoder)["image_encoder"]
    np.testing.assert_array_equal(encoder["pos_embed"].reshape(64, 32), state["pos_embed"][0, 1:])
    np.testing.assert_array_equal(
        encoder["patch_embed_proj"]["kernel"], state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )


def test_all_that_does_not_fit_is_named(params, tmp_path):
    state = mae_state()
    del state["blocks.0.norm1.bias"]
    state["blocks.1.mlp.fc1.bias"] = np.zeros(3, np.float32)
    state["blocks.2.norm1.bias"] = np.zeros(32, np.float32)
    save_file(state, tmp_path / "mae.safetensors")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_pretrained_encoder(tmp_path / "mae.safetensors", params, SMALL.encoder)
    for part in ("missing blocks.0.norm1.bias", "blocks.1.mlp.fc1.bias gives shape (3,)", "extra blocks.2.norm1.bias"):
        assert re.search(re.escape(part), str(error.value))
    save_file({"weight": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="expected a masked autoencoder"):
        load_pretrained_encoder(tmp_path / "other.safetensors", params, SMALL.encoder)
    with pytest.raises(FileNotFoundError):
        load_pretrained_encoder(tmp_path / "none.pth", params, SMALL.encoder)
