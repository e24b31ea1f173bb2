"""The project's own checkpoint: one safetensors file with the model's config in its metadata. Reading runs no code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors stores
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from sam_jax.clip.config import ClipConfig
from sam_jax.clip.network import init_clip_params
from sam_jax.config import SamConfig
from sam_jax.errors import AlreadyExists, MissingFile, UserError
from sam_jax.files import replacing
from sam_jax.modeling import init_params
from sam_jax.types import Params

CONFIG_KEY, CLIP_CONFIG_KEY = "sam_jax_config", "sam_jax_clip_config"
RITM_CONFIG_KEY, DETECTOR_CONFIG_KEY = "sam_jax_ritm_config", "sam_jax_detector_config"
KINDS = {
    CONFIG_KEY: "a checkpoint of Segment Anything",
    CLIP_CONFIG_KEY: "a CLIP checkpoint",
    RITM_CONFIG_KEY: "a RITM checkpoint",
    DETECTOR_CONFIG_KEY: "a detector",
}
"""Where in a file's metadata the config is, and what the file then holds."""
AnyConfig = SamConfig | ClipConfig


@functools.lru_cache(maxsize=48)  # tracing a model takes up to a second
def param_shapes(init: Callable[..., Params], config: Any) -> Mapping[str, tuple[int, ...]]:
    """`path/to/param` -> shape, of what `init(config, key)` makes."""
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    return MappingProxyType({name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()})


def expected_shapes(config: AnyConfig) -> Mapping[str, tuple[int, ...]]:
    """`path/to/param` -> shape, of a SAM or a CLIP with this config."""
    return param_shapes(init_clip_params if isinstance(config, ClipConfig) else init_params, config)


def check_params(
    flat: Mapping[str, Any], config: AnyConfig, source: str, expected: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """Compares names and shapes with the config's.

    Args:
        flat: `path/to/param` -> array.
        source: named in the error.
        expected: name -> shape, where `flat` has other names than our own.

    Raises:
        ValueError: names every missing, extra and misshapen tensor at once.
    """
    expected = expected_shapes(config) if expected is None else expected
    compare_shapes(flat, expected, f"{source} does not fit model {config.name!r}")


def compare_shapes(flat: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], complaint: str) -> None:
    """Compares the arrays of a checkpoint, of any model, with the names and shapes that it should have.

    Raises:
        ValueError: the complaint, and every missing, extra and misshapen tensor.
    """
    problems = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - flat.keys())]
    problems += [f"extra {name} {tuple(flat[name].shape)}" for name in sorted(flat.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(flat[name].shape)}, expected {expected[name]}"
        for name in sorted(expected.keys() & flat.keys())
        if tuple(flat[name].shape) != expected[name]
    ]
    if problems:
        raise UserError(f"{complaint}:\n  " + "\n  ".join(problems))


def save_checkpoint(path: str | Path, params: Params, config: AnyConfig, dtype: Any = np.float32) -> None:
    """Writes params and config, of a SAM or a CLIP, under a temporary name first.

    Args:
        dtype: of the stored numbers; float16 halves the file.

    Raises:
        ValueError: the params do not fit the config.
    """
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    check_params(flat, config, "the params to save")
    key = CLIP_CONFIG_KEY if isinstance(config, ClipConfig) else CONFIG_KEY
    write_tensors(Path(path), flat, {key: config.to_json()}, dtype)


def write_tensors(path: Path, flat: Mapping[str, np.ndarray], metadata: dict[str, str], dtype: Any) -> None:
    """A safetensors file, under a temporary name first."""
    arrays = {name: np.array(value, dtype, order="C") for name, value in flat.items()}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata)


def rewrite(
    src: str | Path,
    dst: str | Path,
    load: Callable[[str | Path], tuple[Params, Any]],
    save: Callable[[Path, Params, Any], None],
    kind: str,
    *,
    overwrite: bool = False,
) -> None:
    """Loads a checkpoint of some kind and saves it as `*.safetensors`.

    Raises:
        FileExistsError: `dst` exists, and no `overwrite`.
        ValueError: another name; and what `load` raises.
    """
    dst = Path(dst)
    if dst.suffix != ".safetensors":
        raise UserError(f"expected a destination *.safetensors for {kind}, got {dst}")
    if dst.exists() and not overwrite:
        raise AlreadyExists(f"{dst} exists; choose another name or ask to overwrite it")
    params, config = load(src)
    dst.parent.mkdir(parents=True, exist_ok=True)
    save(dst, params, config)


def load_checkpoint(path: str | Path) -> tuple[Params, SamConfig]:
    """Reads what `save_checkpoint` wrote; the params come as float32 numpy arrays.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this project, or its tensors do not fit its config.
    """
    return _load(Path(path), CONFIG_KEY, SamConfig)


def load_clip_checkpoint(path: str | Path) -> tuple[Params, ClipConfig]:
    """As `load_checkpoint`, of a CLIP."""
    return _load(Path(path), CLIP_CONFIG_KEY, ClipConfig)


def _load(path: Path, key: str, config_class: Any) -> tuple[Params, Any]:
    text, flat = read_tensors(path, key)
    config = config_class.from_json(text)
    check_params(flat, config, str(path))
    return unflatten_dict(flat, sep="/"), config


def read_tensors(path: Path, config_key: str) -> tuple[str, dict[str, np.ndarray]]:
    """The text under a key of a safetensors file's metadata, and its tensors in float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or nothing under that key.
    """
    if not path.is_file():
        raise MissingFile(f"expected a checkpoint at {path}, found no file")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys() if config_key in metadata else ()
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in names}
    except Exception as error:  # of safetensors, or a dtype that numpy has not
        raise UserError(f"expected a safetensors checkpoint, {path} is none: {error}") from error
    if config_key not in metadata:
        held = next((kind for key, kind in KINDS.items() if key in metadata), None)
        if held is not None:
            raise UserError(f"expected {KINDS[config_key]}, {path} is {held}")
        raise UserError(f"{path} is a safetensors file without a model config; convert it first (sam-jax convert)")
    return metadata[config_key], tensors
