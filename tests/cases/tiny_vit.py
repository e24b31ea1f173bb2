"""A small model with a TinyViT encoder, and that network in PyTorch, from tensors with the published names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cases.models import SMALL
from sam_jax.config import TinyViTConfig

ENCODER = TinyViTConfig(
    image_size=80, widths=(8, 12, 16, 24), depths=(1, 2, 1, 1), heads=(1, 2, 4, 3), windows=(1, 3, 5, 2)
)  # grids of 10 and 5 cells: windows of 3 and 2 are filled up, one of 5 is all
MODEL = dataclasses.replace(SMALL, name="mobile", encoder=ENCODER)


def pytorch_maps(state: Mapping[str, Any], images: Any, config: TinyViTConfig) -> dict[str, Any]:
    """Returns the outputs of the stages by name, in NCHW."""
    import torch
    from torch.nn import functional as F

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        kernel = state[f"{name}.c.weight"]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=x.shape[1] // kernel.shape[1])
        norm = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *norm)

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def attend(window: Any, name: str, heads: int) -> Any:  # (side, side, C), in plain loops over heads and pixels
        side, _, C = window.shape
        x, d = norm(window.reshape(side * side, C), f"{name}.norm"), C // heads
        qkv = linear(x, f"{name}.qkv").reshape(-1, heads, 3 * d)
        parts = []
        for head in range(heads):
            q, k, v = qkv[:, head].split(d, 1)
            biases = torch.empty(side * side, side * side)
            for i in range(side * side):
                for j in range(side * side):
                    rows, cols = abs(i // side - j // side), abs(i % side - j % side)
                    biases[i, j] = state[f"{name}.attention_biases"][head, rows * side + cols]
            parts.append((q @ k.T / d**0.5 + biases).softmax(-1) @ v)
        return linear(torch.cat(parts, -1), f"{name}.proj").reshape(side, side, C)

    def transformer_block(x: Any, name: str, heads: int, side: int) -> Any:
        B, _, h, w = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -w % side, 0, -h % side))
        attended = torch.empty_like(padded)
        for b in range(B):
            for i in range(0, padded.shape[1], side):
                for j in range(0, padded.shape[2], side):
                    window = padded[b, i : i + side, j : j + side]
                    attended[b, i : i + side, j : j + side] = attend(window, f"{name}.attn", heads)
        x = conv(x + attended[:, :h, :w].permute(0, 3, 1, 2), f"{name}.local_conv")
        y = norm(x.permute(0, 2, 3, 1), f"{name}.mlp.norm")
        y = linear(F.gelu(linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        return x + y.permute(0, 3, 1, 2)

    def conv_block(x: Any, name: str) -> Any:
        y = F.gelu(conv(F.gelu(conv(x, f"{name}.conv1")), f"{name}.conv2"))
        return F.gelu(x + conv(y, f"{name}.conv3"))

    x = conv(F.gelu(conv(images, "patch_embed.seq.0", 2)), "patch_embed.seq.2", 2)
    maps = {}
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            if stage == 0:
                x = conv_block(x, name)
            else:
                x = transformer_block(x, name, config.heads[stage], config.windows[stage])
        maps[("stride_4", "stride_8", "stride_16", "last")[stage]] = x
        if stage < 3:
            name = f"layers.{stage}.downsample"
            x = F.gelu(conv(F.gelu(conv(x, f"{name}.conv1")), f"{name}.conv2", (2, 2, 1)[stage]))
            x = conv(x, f"{name}.conv3")
    return maps
