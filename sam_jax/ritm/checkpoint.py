"""Our file format for RITM: safetensors with the config in its metadata. Reading runs no code."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sam_jax.checkpoint import compare_shapes
from sam_jax.ritm.config import RitmConfig
from sam_jax.ritm.network import init_params
from sam_jax.types import Params

CONFIG_KEY = "sam_jax_ritm_config"


@functools.lru_cache(maxsize=16)
def expected_shapes(config: RitmConfig) -> Mapping[str, tuple[int, ...]]:
    """`path/to/param` -> shape, of a model with this config; running statistics count as params."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    return MappingProxyType({name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()})


def save_ritm(path: str | Path, params: Params, config: RitmConfig) -> None:
    """Writes params, as float32, and config; under a temporary name first.

    Raises:
        ValueError: the params do not fit the config; all that is wrong is named.
    """
    path = Path(path)
    flat = {name: np.ascontiguousarray(value, np.float32) for name, value in flatten_dict(params, sep="/").items()}
    compare_shapes(flat, expected_shapes(config), f"the params to save do not fit RITM {config.name!r}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(flat, temporary, {CONFIG_KEY: config.to_json()})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_ritm(path: Path) -> tuple[Params, RitmConfig]:
    """Reads what `save_ritm` wrote; the params come as float32 numpy arrays.

    Raises:
        ValueError: not such a file, or its tensors do not fit its config.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if CONFIG_KEY not in metadata:
                kind = "a checkpoint of Segment Anything" if "sam_jax_config" in metadata else "of another kind"
                raise ValueError(f"expected a RITM checkpoint with its config, {path} is a safetensors file {kind}")
            config = RitmConfig.from_json(metadata[CONFIG_KEY])
            flat = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"expected a RITM checkpoint (published .pth or converted .safetensors), {path} is none: {error}"
        ) from error
    compare_shapes(flat, expected_shapes(config), f"{path} does not fit RITM {config.name!r}")
    return unflatten_dict(flat, sep="/"), config
