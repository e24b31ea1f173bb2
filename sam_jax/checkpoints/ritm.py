"""Published RITM checkpoints (`.pth`: a config and a state dict) -> params and config, and names both ways.

Our names are the published ones with `/` for `.` and digits joined by `_`; the head has a part of its own. What is
numbered there and alike, the modules of a stage and the blocks of a branch, is one array with leading axes here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.files import is_pytorch, load_pytorch
from sam_jax.checkpoints.format import compare_shapes, rewrite
from sam_jax.errors import MissingFile, UserError
from sam_jax.ritm.checkpoint import expected_shapes, read_ritm, save_ritm
from sam_jax.ritm.config import RITM_SIZES, RitmConfig
from sam_jax.ritm.model import Ritm
from sam_jax.types import Params

# Applied one after the other to `path/to/param` of our tree; {} stands for the number in a leading axis.
RULES = (
    (r"^head/", "feature_extractor/"),
    (r"/(stage\d)/", r"/\1/{}/"),
    (r"/(branches_\d)/", r"/\1/{}/"),
    (r"/(ocr_distri_head)_", r"/\1/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
    (r"_(\d+)(?=[_/])", r"/\1"),
    (r"/3_scale$", "/3/scale"),  # of the clicks, which has no norm
    (r"/", "."),
)
IGNORED = r"\.num_batches_tracked$"  # of training
MODEL_CLASS = "HRNetModel"
# What a config may hold besides what we read, and the only value that we have a network for.
# The second value is the published code's own default, which files may leave out.
FIXED: dict[str, tuple[Any, Any]] = {
    "use_rgb_conv": (False, True),
    "conv_extend": (False, False),
    "use_disks": (True, False),
    "clicks_groups": (None, None),
    "binary_prev_mask": (False, False),
}


def load_ritm_params(path: str | Path) -> tuple[Params, RitmConfig]:
    """Reads a published `.pth`, which needs PyTorch, or our own file; the content tells which. No code in it is run.

    Returns:
        float32 numpy params and their config.

    Raises:
        FileNotFoundError: nothing there.
        ImportError: a `.pth` file, and no PyTorch.
        ValueError: not a RITM checkpoint; a network that we do not have; tensors missing, extra or misshapen, which
            are all named.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"expected a RITM checkpoint at {path}, found no file")
    if not is_pytorch(path):
        return read_ritm(path)
    published, state = _read_published(path)
    config = config_from_published(published, str(path))
    return params_from_state(state, config, str(path)), config


def convert_ritm(src: str | Path, dst: str | Path, *, overwrite: bool = False) -> None:
    """Writes a published checkpoint as our file, which is read without PyTorch.

    Raises:
        FileExistsError: `dst` exists, and no `overwrite`.
        ValueError: `dst` is not *.safetensors; and what `load_ritm_params` raises.
    """
    rewrite(src, dst, load_ritm_params, save_ritm, "a RITM checkpoint", overwrite=overwrite)


def config_from_published(published: Mapping[str, Any], source: str) -> RitmConfig:
    """The config that a published checkpoint holds: its class and the arguments that it was built with.

    Raises:
        ValueError: names all that our network cannot do.
    """
    try:
        name = published["class"].rsplit(".", 1)[-1]
        arguments = {key: entry["value"] for key, entry in published["params"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"expected a config with 'class' and 'params' (name -> value) in {source}, got {published!r}"
        ) from error
    problems = [] if name == MODEL_CLASS else [f"class {name}, expected {MODEL_CLASS}"]
    problems += [
        f"{key} = {arguments.get(key, default)!r}, expected {only!r}"
        for key, (only, default) in FIXED.items()
        if arguments.get(key, default) != only
    ]
    ocr_width = arguments.get("ocr_width", 256)
    if name == MODEL_CLASS and ocr_width <= 0:
        problems.append(f"ocr_width = {ocr_width}, expected a head of object-contextual representations")
    if problems:
        raise UserError(f"{source} holds a network that sam_jax.ritm has not: {'; '.join(problems)}")
    mean, std = arguments.get("norm_mean_std") or (RitmConfig.pixel_mean, RitmConfig.pixel_std)
    config = RitmConfig(
        width=arguments.get("width", 48),
        ocr_width=ocr_width,
        small=arguments.get("small", False),
        previous_mask=arguments.get("with_prev_mask", False),
        leaky_relu=arguments.get("use_leaky_relu", False),
        click_radius=float(arguments.get("norm_radius", 260)),
        pixel_mean=tuple(mean),
        pixel_std=tuple(std),
        name=f"hrnet{arguments.get('width', 48)}{'s' if arguments.get('small') else ''}",
    )
    return next((known for known in RITM_SIZES.values() if known == config), config)


@dataclasses.dataclass(frozen=True)
class PublishedTensor:
    """A tensor of a published checkpoint, and where it is in our params."""

    name: str
    shape: tuple[int, ...]
    ours: str  # path/to/param
    place: tuple[int, ...]  # in the leading axes of ours, of which modules that are alike have one or two


def published_tensors(config: RitmConfig) -> list[PublishedTensor]:
    """Every tensor of a published checkpoint of this config, but for the counters of training batches."""
    tensors = []
    for ours, shape in expected_shapes(config).items():
        name = ours
        for pattern, replacement in RULES:
            name = re.sub(pattern, replacement, name)
        places = name.count("{}")
        inner = shape[places:]
        inner = (inner[3], inner[2], inner[0], inner[1]) if len(inner) == 4 else inner
        for place in np.ndindex(shape[:places]):
            tensors.append(PublishedTensor(name.format(*place), inner, ours, place))
    return tensors


def params_from_state(state: Mapping[str, np.ndarray], config: RitmConfig, source: str = "the state dict") -> Params:
    """A published state dict, as numpy arrays -> params, float32.

    Raises:
        ValueError: names every missing, extra and misshapen tensor at once, as the state dict calls them.
    """
    state = {name: array for name, array in state.items() if not re.search(IGNORED, name)}
    tensors = published_tensors(config)
    expected = {tensor.name: tensor.shape for tensor in tensors}
    compare_shapes(state, expected, f"{source} does not fit RITM {config.name!r}")
    flat = {name: np.empty(shape, np.float32) for name, shape in expected_shapes(config).items()}
    for tensor in tensors:
        value = state[tensor.name]
        flat[tensor.ours][tensor.place] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return unflatten_dict(flat, sep="/")


def state_from_params(params: Params, config: RitmConfig) -> dict[str, np.ndarray]:
    """Params -> the published state dict, but for the counters of training batches.

    Raises:
        ValueError: the params do not fit the config.
    """
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    compare_shapes(flat, expected_shapes(config), f"the params to convert do not fit RITM {config.name!r}")
    state = {}
    for tensor in published_tensors(config):
        value = flat[tensor.ours][tensor.place]
        state[tensor.name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    return state


def _read_published(path: Path) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
    """The config and the state dict of a published checkpoint."""
    content = load_pytorch(path)
    if isinstance(content, list):
        raise UserError(f"expected a checkpoint of one model, {path} holds a list of {len(content)}")
    if not isinstance(content, Mapping) or not {"config", "state_dict"} <= content.keys():
        found = f"keys {list(content)[:8]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"expected a RITM checkpoint with 'config' and 'state_dict' in {path}, found {found}")
    state = content["state_dict"]
    if not isinstance(state, Mapping) or not all(hasattr(value, "numpy") for value in state.values()):
        raise UserError(f"expected 'state_dict' in {path} to map names to tensors")
    return content["config"], {name: tensor.float().numpy() for name, tensor in state.items()}


def load_ritm(path: str | Path) -> Ritm:
    """A model from a published `.pth` or from our own file; see `load_ritm_params`."""
    params, config = load_ritm_params(path)
    return Ritm(config, params)
