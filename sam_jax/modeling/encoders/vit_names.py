"""The ViT's tensors in checkpoints that others publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from sam_jax.config import ViTConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders.base import HuggingFaceNames, OfficialNames, Pretraining, Shape

POSITIONS, PATCHES = "pos_embed", "patch_embed.proj.weight"


def _positions(config: ViTConfig) -> Shape:
    return 1, config.grid_size, config.grid_size, config.dim


def _guess(shapes: Mapping[str, Shape]) -> ViTConfig:
    _, grid, _, dim = shapes[POSITIONS]
    patch_size = shapes[PATCHES][-1]
    depth = sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in shapes)
    tables = [shapes[f"blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    sides = [(rows + 1) // 2 for rows, _ in tables]  # of the attention, patches
    return ViTConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=dim // tables[0][1],
        mlp_ratio=shapes["blocks.0.mlp.lin1.weight"][0] / dim,
        window_size=next((side for side in sides if side != grid), grid),
        global_attention_blocks=tuple(i for i, side in enumerate(sides) if side == grid),
    )


OFFICIAL = OfficialNames(
    rules=((r"^patch_embed_proj/", "patch_embed/proj/"),),
    landmark=POSITIONS,
    landmark_shape=_positions,
    guess=_guess,
)


def _to_huggingface(config: ViTConfig) -> dict[str, Any]:
    return {
        "model_type": "sam_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "use_abs_pos": True,
        "use_rel_pos": True,
        "window_size": config.window_size,
        "global_attn_indexes": list(config.global_attention_blocks),
        "mlp_dim": int(config.dim * config.mlp_ratio),
    }


def _from_huggingface(section: Mapping[str, Any]) -> ViTConfig:
    return ViTConfig(
        image_size=section["image_size"],
        patch_size=section["patch_size"],
        dim=section["hidden_size"],
        depth=section["num_hidden_layers"],
        heads=section["num_attention_heads"],
        mlp_ratio=section["mlp_dim"] / section["hidden_size"],
        window_size=section["window_size"],
        global_attention_blocks=tuple(section["global_attn_indexes"]),
    )


HUGGINGFACE = HuggingFaceNames(
    rules=(
        (r"^patch_embed_proj/", "patch_embed/projection/"),
        (r"^blocks_(\d+)/", r"layers/\1/"),
        (r"/norm(\d)/", r"/layer_norm\1/"),
    ),
    landmark=POSITIONS,
    landmark_shape=_positions,
    to_section=_to_huggingface,
    from_section=_from_huggingface,
)


def _from_autoencoder(name: str, value: np.ndarray, config: ViTConfig) -> np.ndarray:
    """Drops the class token and resizes positions to the config's grid, and kernels to its patch, both bicubically."""
    value = np.asarray(value, np.float32)
    if name == POSITIONS:
        side = round((value.shape[1] - 1) ** 0.5)
        if side**2 + 1 != value.shape[1]:
            raise UserError(f"expected {POSITIONS} of a square grid and a class token, got {value.shape}")
        return resize_bicubic(value[0, 1:].reshape(side, side, -1), config.grid_size)[None]
    if name == PATCHES:  # (out, in, h, w) -> (h, w, in, out)
        patch, (h, w, _, out) = config.patch_size, value.transpose(2, 3, 1, 0).shape
        flat = value.transpose(2, 3, 1, 0).reshape(h, w, -1)
        return resize_bicubic(flat, patch).reshape(patch, patch, -1, out)
    return np.ascontiguousarray(value.T)  # (out, in) -> (in, out)


def resize_bicubic(grid: Float[np.ndarray, "h w D"], side: int) -> Float[np.ndarray, "{side} {side} D"]:
    """Resizes (h, w, D) to (side, side, D) as PyTorch's bicubic interpolation: a = -0.75, no antialias."""
    if grid.shape[:2] == (side, side):
        return grid
    columns = [
        cv2.resize(np.ascontiguousarray(part), (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, -1)
        for part in np.array_split(grid, -(-grid.shape[-1] // 4), axis=-1)  # OpenCV takes few channels at a time
    ]
    return np.concatenate(columns, -1)


# The published `mae_pretrain_vit_{base,large,huge}.pth` (He et al. 2021); ViT-H has patches of 14 x 14.
MASKED_AUTOENCODER = Pretraining(
    what="a masked autoencoder's ViT",
    rules=((r"^patch_embed_proj/", "patch_embed/proj/"), (r"/mlp/lin(\d)/", r"/mlp/fc\1/")),
    landmarks=(POSITIONS, PATCHES),
    unused=r"^(cls_token|mask_token|decoder_.*|norm\..*|fc_norm\..*|head\..*)$",
    zeros=r"/rel_pos_[hw]$",
    convert=_from_autoencoder,
)
