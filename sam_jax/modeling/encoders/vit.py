"""The plain ViT image encoder: windowed and global attention, decomposed relative positions.

Reference: Kirillov et al. 2023, section A; Li et al. 2022 (ViTDet).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sam_jax.config import SIZES, ViTConfig
from sam_jax.modeling.attention import GridAttention
from sam_jax.modeling.common import DropPath, LayerNorm, MlpBlock, PatchConv, gelu
from sam_jax.modeling.encoders import vit_names
from sam_jax.modeling.encoders.base import Encoder, Trunk
from sam_jax.types import Params


def partition_windows(x: Float[Array, "B h w D"], window: int) -> Float[Array, "windows {window} {window} D"]:
    """Cuts grids into windows, B * windows of each, zero-padding the right and the bottom."""
    B, h, w, D = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, cols = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(B, rows, window, cols, window, D).swapaxes(2, 3)
    return x.reshape(B * rows * cols, window, window, D)


def merge_windows(
    x: Float[Array, "windows window window D"], size: tuple[int, int]
) -> Float[Array, "B {size[0]} {size[1]} D"]:
    """Undoes `partition_windows` for images of `size` = (h, w) patches; the padding is cut off."""
    (h, w), window, D = size, x.shape[1], x.shape[-1]
    rows, cols = -(-h // window), -(-w // window)
    x = x.reshape(-1, rows, cols, window, window, D).swapaxes(2, 3)
    return x.reshape(-1, rows * window, cols * window, D)[:, :h, :w]


class ViTBlock(nn.Module):
    """Pre-norm transformer block. `window` 0 means global attention."""

    heads: int
    mlp_dim: int
    window: int
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"], deterministic: bool) -> Float[Array, "B h w D"]:
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attention = GridAttention(self.heads, self.dtype, name="attn")
        if self.window:
            # The zero padding takes part as keys and values, as in the official model; masking it changes the result.
            y = merge_windows(attention(partition_windows(y, self.window)), (x.shape[1], x.shape[2]))
        else:
            y = attention(y)
        drop = DropPath(self.drop_path)
        x = x + drop(y, deterministic)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = MlpBlock(x.shape[-1], self.mlp_dim, gelu, self.dtype, name="mlp")(y)
        return x + drop(y, deterministic)


class ViT(Trunk[ViTConfig]):
    """The plain ViT. Its maps are the outputs of the blocks, "block_0" and so on; all have the stride of the patches.

    The rate of the drop path grows linearly from 0 at the first block.
    """

    @nn.compact
    def __call__(
        self, images: Float[Array, "B S S 3"], deterministic: bool = True
    ) -> dict[str, Float[Array, "B h w {self.config.dim}"]]:
        c = self.config
        x = PatchConv(3, c.dim, c.patch_size, self.dtype, name="patch_embed_proj")(images)
        shape = (1, c.grid_size, c.grid_size, c.dim)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), shape).astype(self.dtype)
        block_class = nn.remat(ViTBlock, static_argnums=(2,)) if self.remat else ViTBlock
        maps = {}
        for i in range(c.depth):
            x = block_class(
                heads=c.heads,
                mlp_dim=int(c.dim * c.mlp_ratio),
                window=0 if i in c.global_attention_blocks else c.window_size,
                drop_path=self.drop_path * i / max(c.depth - 1, 1),
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x, deterministic)
            maps[f"block_{i}"] = x
        return maps | {"last": x}


def vit_layers(config: ViTConfig) -> tuple[str, ...]:
    """Returns the layers of ViTDet: the patch and position embeddings are the first, then comes each block."""
    return (r"^(patch_embed|pos_embed)", *(rf"^blocks_{i}/" for i in range(config.depth)))


def vit_flops(config: ViTConfig) -> float:
    """Returns the operations of matrix products: (n, k) by (k, m) is 2 n k m. Windows count with their padding."""
    D, side, hidden = config.dim, config.grid_size, int(config.dim * config.mlp_ratio)
    tokens = side**2
    windows = (-(-side // config.window_size)) ** 2 if config.window_size else 1
    flops = 2.0 * tokens * config.patch_size**2 * 3 * D
    for block in range(config.depth):
        if block in config.global_attention_blocks or not config.window_size:
            attended, context = tokens, side
        else:
            attended, context = windows * config.window_size**2, config.window_size
        products = 4 * D * D + 2 * context**2 * D + 2 * context * D  # qkv and proj, q k and weights v, positions
        flops += 2.0 * attended * products + 2.0 * tokens * 2 * D * hidden
    return flops


def resize_vit(params: Params, old: ViTConfig, new: ViTConfig) -> Params:
    """Interpolates the position embedding, and the relative positions of the global blocks."""
    grid, resized = new.grid_size, dict(params)
    shape = (1, grid, grid, new.dim)
    resized["pos_embed"] = jax.image.resize(params["pos_embed"], shape, "bicubic", antialias=False)
    for i in new.global_attention_blocks:
        block = params[f"blocks_{i}"]
        tables = {
            name: jax.image.resize(table, (2 * grid - 1, table.shape[1]), "linear", antialias=False)
            for name, table in block["attn"].items()
            if name in ("rel_pos_h", "rel_pos_w")
        }
        resized[f"blocks_{i}"] = block | {"attn": block["attn"] | tables}
    return resized


ENCODER = Encoder(
    config=ViTConfig,
    trunk=ViT,
    layers=vit_layers,
    flops=vit_flops,
    resize=resize_vit,
    sizes=SIZES,
    official=vit_names.OFFICIAL,
    huggingface=vit_names.HUGGINGFACE,
    pretraining=vit_names.MASKED_AUTOENCODER,
)
