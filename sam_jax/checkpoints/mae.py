"""Masked-autoencoder ViT weights (He et al. 2021) -> the start of an image encoder, as the paper's training has it."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.files import read_state
from sam_jax.checkpoints.format import expected_shapes
from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.types import Params

POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"
# What a masked autoencoder has beside the encoder that we take over.
UNUSED = r"^(cls_token|mask_token|decoder_.*|norm\..*|fc_norm\..*|head\..*)$"
# Ours, after `image_encoder/` -> theirs.
RULES = (
    (r"^patch_embed_proj/", "patch_embed/proj/"),
    (r"^blocks_(\d+)/", r"blocks/\1/"),
    (r"/mlp/lin(\d)/", r"/mlp/fc\1/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)


def load_mae_encoder(path: str | Path, params: Params, config: SamConfig) -> Params:
    """Params with the image encoder's patches, positions and blocks from an MAE checkpoint; the rest as it was.

    Reads the published `mae_pretrain_vit_{base,large,huge}.pth` and the same tensors as safetensors. Absolute positions
    are resized to the grid of `config`, patch kernels to its patch (ViT-H has 14 x 14), both bicubic; the class token
    is dropped; relative positions start at zero; the neck, the prompt encoder and the decoder keep their `params`.

    Raises:
        FileNotFoundError, ImportError: as `load_any`.
        ValueError: not a masked autoencoder, or one of another size; names all tensors that do not fit.

    Reference: paper, section A "Image encoder"; Li et al. 2022 (ViTDet).
    """
    state = read_state(Path(path))
    if POSITIONS not in state or PATCHES not in state:
        raise UserError(
            f"expected a masked autoencoder's ViT with {POSITIONS} and {PATCHES}, {path} has {sorted(state)[:8]}"
        )
    flat = flatten_dict(params, sep="/")
    prefix = "image_encoder/"
    wanted = {
        name: _rename(name.removeprefix(prefix))
        for name in expected_shapes(config)
        if name.startswith(prefix) and "/neck_" not in name and "rel_pos" not in name
    }
    problems = [f"missing {theirs}" for theirs in wanted.values() if theirs not in state]
    problems += [f"extra {name}" for name in state if name not in wanted.values() and not re.match(UNUSED, name)]
    for ours, theirs in wanted.items():
        if theirs not in state:
            continue
        value = _convert(theirs, state[theirs], config)
        shape = expected_shapes(config)[ours]
        if value.shape != shape:
            problems.append(f"{theirs} gives shape {value.shape}, expected {shape}")
        flat[ours] = value
    if problems:
        raise UserError(f"{path} does not fit the encoder of model {config.name!r}:\n  " + "\n  ".join(problems))
    for name in expected_shapes(config):
        if "rel_pos" in name:
            flat[name] = np.zeros(expected_shapes(config)[name], np.float32)
    return unflatten_dict(flat, sep="/")


def _rename(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _convert(name: str, value: np.ndarray, config: SamConfig) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if name == POSITIONS:
        side = round((value.shape[1] - 1) ** 0.5)
        if side**2 + 1 != value.shape[1]:
            raise UserError(f"expected {POSITIONS} of a square grid and a class token, got {value.shape}")
        return resize_bicubic(value[0, 1:].reshape(side, side, -1), config.grid_size)[None]
    if name == PATCHES:  # (out, in, h, w) -> (h, w, in, out)
        kernel = value.transpose(2, 3, 1, 0)
        h, w, _, out = kernel.shape
        return resize_bicubic(kernel.reshape(h, w, -1), config.patch_size).reshape(
            config.patch_size, config.patch_size, -1, out
        )
    return np.ascontiguousarray(value.T)  # (out, in) -> (in, out)


def resize_bicubic(grid: np.ndarray, side: int) -> np.ndarray:
    """(h, w, D) -> (side, side, D) with a = -0.75 and no antialias, as PyTorch's bicubic interpolation."""
    if grid.shape[:2] == (side, side):
        return grid
    columns = [
        cv2.resize(np.ascontiguousarray(part), (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, -1)
        for part in np.array_split(grid, -(-grid.shape[-1] // 4), axis=-1)  # OpenCV takes few channels at a time
    ]
    return np.concatenate(columns, -1)
