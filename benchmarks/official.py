"""What benchmarks share: random weights, and a checkout of github.com/facebookresearch/segment-anything to compare."""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import unflatten_dict
from PIL import Image

from sam_jax.checkpoints import expected_shapes, state_from_params
from sam_jax.config import SamConfig
from sam_jax.types import Params

if TYPE_CHECKING:
    import torch


def use_official(folder: Path) -> None:
    """`import segment_anything` works after this.

    It imports five names of torchvision, whose CPU build is hard to come by: without torchvision, these stand in.
    """
    sys.path.insert(0, str(folder))
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name, contents in {
            "torchvision": {},
            "torchvision.ops": {},
            "torchvision.ops.boxes": {"batched_nms": _nms, "box_area": _box_area},
            "torchvision.transforms": {},
            "torchvision.transforms.functional": {"resize": _resize, "to_pil_image": Image.fromarray},
        }.items():
            module = types.ModuleType(name)
            module.__dict__.update(contents)
            sys.modules[name] = module


def official_model(params: Params, config: SamConfig) -> Any:
    """The official `Sam` of any config, with our weights; call `use_official` first."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    model = Sam(
        image_encoder=ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.encoder.patch_size,
            embed_dim=config.encoder.dim,
            depth=config.encoder.depth,
            num_heads=config.encoder.heads,
            mlp_ratio=config.encoder.mlp_ratio,
            out_chans=config.prompt_dim,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.encoder.window_size,
            global_attn_indexes=config.encoder.global_attention_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.prompt_dim,
            image_embedding_size=(config.grid_size, config.grid_size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=config.num_multimask_outputs,
            transformer=TwoWayTransformer(
                config.decoder_depth, config.prompt_dim, config.decoder_heads, config.decoder_mlp_dim
            ),
            transformer_dim=config.prompt_dim,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_hidden_dim,
        ),
        pixel_mean=list(config.encoder.pixel_mean),
        pixel_std=list(config.encoder.pixel_std),
    )
    state = state_from_params(params, config, "official")
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=True)
    return model.eval()


def random_params(config: SamConfig, seed: int = 0) -> Params:
    """Weights that keep the magnitude of what passes; nothing is zero, which would hide mistakes."""
    random = np.random.default_rng(seed)

    def sample(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.normal(size=shape).astype(np.float32)
        if name.endswith("scale"):
            return 1 + 0.2 * noise
        if name.endswith("kernel"):
            return noise / np.float32(np.prod(shape[:-1])) ** 0.5
        return 0.2 * noise if name.endswith(("bias", "rel_pos_h", "rel_pos_w", "pos_embed")) else noise

    flat = {name: sample(name, shape) for name, shape in sorted(expected_shapes(config).items())}
    return unflatten_dict(flat, sep="/")


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def _box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Box by box, as the kernel of torchvision; the official code has a single category."""
    import torch

    assert not idxs.any()
    areas = _box_area(boxes)
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    fallen, kept = set(), []
    for i, best in enumerate(order):
        if best in fallen:
            continue
        kept.append(best)
        rest = torch.tensor([j for j in order[i + 1 :] if j not in fallen], dtype=torch.long)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        inner = (high - low).clamp(min=0).prod(1)
        fallen.update(rest[inner / (areas[best] + areas[rest] - inner) > iou_threshold].tolist())
    return torch.tensor(kept, dtype=torch.long)
