"""Detectors from files: our own, and those that detectron2 publishes.

Our names are detectron2's with `/` for `.` and digits joined by `_`, but for the parts of the model, which are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.files import read_state
from sam_jax.checkpoints.format import (
    DETECTOR_CONFIG_KEY,
    compare_shapes,
    param_shapes,
    read_tensors,
    rewrite,
    write_tensors,
)
from sam_jax.checkpoints.pickles import read_pickled_tensors
from sam_jax.detection.config import DETECTORS, DetectorConfig
from sam_jax.detection.detector import init_detector
from sam_jax.errors import MissingFile, UserError
from sam_jax.modeling.encoders.vit_names import resize_bicubic
from sam_jax.types import Params

POSITIONS = "backbone.net.pos_embed"
PRETRAINING_GRID = 14  # of masked autoencoders on images of 224 pixels
# In published files beside the weights: constants, which the config has too.
CONSTANTS = r"^pixel_(mean|std)$|\.cell_anchors\.\d+$|\.fed_loss_cls_weights$"
# Applied one after the other to `path/to/param` of our tree.
RULES = (
    (r"^image_encoder/", "backbone/net/"),
    (r"^pyramid/", "backbone/"),
    (r"^rpn_head/conv_", "proposal_generator/rpn_head/conv/"),
    (r"^rpn_head/", "proposal_generator/rpn_head/"),
    (r"^box_heads(_\d+)/(cls_score|bbox_pred)", r"roi_heads/box_predictor\1/\2"),
    (r"^box_heads", "roi_heads/box_head"),
    (r"^mask_head/", "roi_heads/mask_head/"),
    (r"patch_embed_proj", "patch_embed/proj"),
    (r"/mlp/lin(\d)", r"/mlp/fc\1"),
    (r"_norm/", "/norm/"),
    (r"simfp_(\d)_(\d)", r"simfp_\1/\2"),
    (r"(blocks|box_head|box_predictor)_(\d+)", r"\1/\2"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)


def detector_shapes(config: DetectorConfig) -> Mapping[str, tuple[int, ...]]:
    """`path/to/param` -> shape, of a detector with this config."""
    return param_shapes(init_detector, config)


def save_detector(path: str | Path, params: Params, config: DetectorConfig, dtype: Any = np.float32) -> None:
    """Writes params and config as safetensors, under a temporary name first.

    Raises:
        ValueError: the params do not fit the config.
    """
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    compare_shapes(flat, detector_shapes(config), f"the params to save does not fit model {config.name!r}")
    write_tensors(Path(path), flat, {DETECTOR_CONFIG_KEY: config.to_json()}, dtype)


def load_detector(path: str | Path, config: DetectorConfig | None = None) -> tuple[Params, DetectorConfig]:
    """Reads a detector: ours (.safetensors), or detectron2's ViTDet (.pkl, .pth, or its tensors as .safetensors).

    No code in a file is run: a .pkl goes through a reader that knows arrays and containers alone, a .pth through
    `torch.load(weights_only=True)`. detectron2 keeps position embeddings at the size of the pre-training and resizes
    them with every image; here they are resized once.

    Args:
        config: of a detectron2 file; None: the published detector with the same size, heads and classes.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .pth, and no PyTorch.
        ValueError: not a detector; tensors missing, extra or misshapen (all are named).

    Returns:
        float32 numpy params and their config.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"expected a detector at {path}, found no file")
    if path.suffix == ".pkl":
        return from_detectron2(read_pickled_tensors(path), config, str(path))
    state = read_state(path)
    if path.suffix == ".safetensors" and POSITIONS not in state:
        text, flat = read_tensors(path, DETECTOR_CONFIG_KEY)
        own = DetectorConfig.from_json(text)
        compare_shapes(flat, detector_shapes(own), f"{path} does not fit model {own.name!r}")
        return unflatten_dict(flat, sep="/"), own
    return from_detectron2(state, config, str(path))


def convert_detector(src: str | Path, dst: str | Path, *, overwrite: bool = False) -> None:
    """Any detector that `load_detector` reads -> `*.safetensors`, ours.

    Raises:
        FileExistsError: `dst` exists, and no `overwrite`.
        ValueError: another name; and what `load_detector` raises.
    """
    rewrite(src, dst, load_detector, save_detector, "a detector", overwrite=overwrite)


def from_detectron2(
    state: Mapping[str, np.ndarray], config: DetectorConfig | None = None, source: str = "the state dict"
) -> tuple[Params, DetectorConfig]:
    """detectron2's ViTDet, as numpy arrays -> params and config. See `load_detector`.

    Raises:
        ValueError: names every missing, extra and misshapen tensor at once, as detectron2 calls them.
    """
    state = {name: value for name, value in state.items() if not re.search(CONSTANTS, name)}
    config = _guess(state, source) if config is None else config
    expected = detectron2_shapes(config)
    if POSITIONS in state and (side := _grid_side(state[POSITIONS].shape)):
        expected[POSITIONS] = (1, side**2 + 1, config.encoder.features)
    compare_shapes(state, expected, f"{source} does not fit model {config.name!r}")
    flat = {}
    for name in detector_shapes(config):
        theirs = detectron2_name(name, config)
        value = np.asarray(state[theirs], np.float32)
        if theirs == POSITIONS:
            side = _grid_side(value.shape)
            flat[name] = resize_bicubic(value[0, 1:].reshape(side, side, -1), config.encoder.grid_size)[None]
        else:
            flat[name] = _to_our_axes(name, value, detector_shapes(config)[name])
    return unflatten_dict(flat, sep="/"), config


def detectron2_shapes(config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of detectron2's model, with the position embeddings of the usual pre-training."""
    shapes = {detectron2_name(name, config): _their_shape(name, s) for name, s in detector_shapes(config).items()}
    return shapes | {POSITIONS: (1, PRETRAINING_GRID**2 + 1, config.encoder.features)}


def detectron2_name(ours: str, config: DetectorConfig) -> str:
    """detectron2's name of a tensor `path/to/param` of ours."""
    name = ours
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name if config.cascade else re.sub(r"(box_head|box_predictor)\.0\.", r"\1.", name)


def _their_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not ours.endswith("/kernel"):
        return shape
    axes = _their_axes(ours, len(shape))
    shape = tuple(shape[axis] for axis in axes)
    return (shape[0], int(np.prod(shape[1:]))) if ours.endswith("/fc1/kernel") else shape


def _to_our_axes(ours: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if not ours.endswith("/kernel"):
        return value
    axes = _their_axes(ours, len(shape))
    value = value.reshape([shape[axis] for axis in axes])  # of the first full layer, which is flat in detectron2
    return np.ascontiguousarray(value.transpose(np.argsort(axes)))


def _their_axes(ours: str, ndim: int) -> tuple[int, ...]:
    """Theirs = ours.transpose(axes)."""
    if ndim == 2:
        return 1, 0  # (in, out) -> (out, in)
    if re.search(r"simfp_2_[03]/|simfp_3_0/|deconv/", ours):
        return 2, 3, 0, 1  # transposed convolution: (h, w, in, out) -> (in, out, h, w)
    return 3, 2, 0, 1  # convolution: (h, w, in, out) -> (out, in, h, w)


def _grid_side(shape: tuple[int, ...]) -> int:
    """Of the square grid that position embeddings beside a class token are for; 0 if they are for none."""
    side = round(max(shape[1] - 1, 0) ** 0.5) if len(shape) == 3 else 0
    return side if side and side**2 + 1 == shape[1] else 0


def _guess(state: Mapping[str, np.ndarray], source: str) -> DetectorConfig:
    if POSITIONS not in state:
        raise UserError(
            f"expected detectron2's ViTDet with a tensor {POSITIONS} in {source}, it has {len(state)} others: "
            f"{sorted(state)[:8]}"
        )
    cascade = any(name.startswith("roi_heads.box_head.0.") for name in state)
    scores = state.get(
        "roi_heads.box_predictor.0.cls_score.bias" if cascade else "roi_heads.box_predictor.cls_score.bias"
    )
    width, classes = state[POSITIONS].shape[-1], None if scores is None else len(scores) - 1
    alike = [c for c in DETECTORS.values() if (c.encoder.features, c.cascade) == (width, cascade)]
    same = [c for c in alike if c.num_classes == classes]
    if not alike or (classes is not None and not same):
        known = ", ".join(sorted({f"{c.encoder.features} with {c.num_classes}" for c in DETECTORS.values()}))
        raise UserError(
            f"{source} has embeddings {width} wide and {classes} classes; published detectors have {known}: "
            "give the config"
        )
    return (same or alike)[0]
