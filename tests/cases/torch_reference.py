"""Hugging Face's `SamModel` with random weights, as a reference for ours."""

import jax
import numpy as np
import torch
import transformers

from sam_jax.checkpoints import params_from_state
from sam_jax.checkpoints.huggingface import config_to_huggingface
from sam_jax.config import SamConfig
from sam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, Params


def reference_model(config: SamConfig, seed: int = 0) -> transformers.SamModel:
    """Weights from a fixed seed, none of them zero or one: what starts at zero would hide mistakes.

    The norms of the decoder's blocks have epsilon 1e-5 here, as in the official code and ours. Hugging Face's default
    is 1e-6, a deviation of its own. `config_to_huggingface` writes 1e-5; the assertion guards that.
    """
    model = transformers.SamModel(transformers.SamConfig(**config_to_huggingface(config))).eval().requires_grad_(False)
    assert model.mask_decoder.transformer.layers[0].layer_norm4.eps == 1e-5
    random = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=random)
        if "norm" in name and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif name.endswith("bias"):
            noise = 0.2 * noise
        elif "rel_pos" in name or "pos_embed" in name:
            noise = 0.3 * noise
        elif parameter.ndim == 4 or "proj" in name or ".lin" in name or ".layers." in name or "qkv" in name:
            noise = noise / parameter[0].numel() ** 0.5  # keeps the magnitude of what passes
        parameter.copy_(noise)
    return model


def params_of(model: transformers.SamModel, config: SamConfig) -> Params:
    """Returns the same weights as our params."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return jax.tree.map(jax.numpy.asarray, params_from_state(state, config, "huggingface"))


def reference_embedding(model: transformers.SamModel, pixels: np.ndarray) -> torch.Tensor:
    """Encodes normalised images (B, S, S, 3) to embeddings (B, D, h, w)."""
    with torch.inference_mode():
        return model.get_image_embeddings(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))


def split_prompt(points: np.ndarray, labels: np.ndarray) -> dict[str, torch.Tensor]:
    """Turns one prompt of ours, (N, 2) and (N,) without padding, into Hugging Face's arguments for one image."""
    clicks, corners = labels < BOX_TOP_LEFT, (labels == BOX_TOP_LEFT) | (labels == BOX_BOTTOM_RIGHT)
    clicks = clicks & (labels != NOT_A_POINT)  # theirs appends that point by itself, where there is no box
    prompt = {}
    if clicks.any():
        prompt["input_points"] = torch.tensor(points[clicks], dtype=torch.float32)[None, None]
        prompt["input_labels"] = torch.tensor(labels[clicks])[None, None]
    if corners.any():
        prompt["input_boxes"] = torch.tensor(points[corners], dtype=torch.float32).reshape(1, 1, 4)
    return prompt


def reference_masks(
    model: transformers.SamModel,
    embedding: torch.Tensor,
    points: np.ndarray,
    labels: np.ndarray,
    mask_logits: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts all four masks of a prompt on an image, the single one first: logits (4, S, S), IoU predictions (4,)."""
    prompt = split_prompt(points, labels)
    if mask_logits is not None:
        prompt["input_masks"] = torch.from_numpy(mask_logits)[None, None]
    with torch.inference_mode():
        outputs = [
            model(image_embeddings=embedding, multimask_output=multimask, **prompt) for multimask in (False, True)
        ]
    logits, iou = (
        torch.cat([getattr(output, name)[0, 0] for output in outputs]).numpy() for name in ("pred_masks", "iou_scores")
    )
    return logits, iou
