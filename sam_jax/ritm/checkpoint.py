"""Our file format for RITM: safetensors with the config in its metadata. Reading runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.format import RITM_CONFIG_KEY, compare_shapes, param_shapes, read_tensors, write_tensors
from sam_jax.ritm.config import RitmConfig
from sam_jax.ritm.network import init_params
from sam_jax.types import Params


def expected_shapes(config: RitmConfig) -> Mapping[str, tuple[int, ...]]:
    """`path/to/param` -> shape, of a model with this config; running statistics count as params."""
    return param_shapes(init_params, config)


def save_ritm(path: str | Path, params: Params, config: RitmConfig) -> None:
    """Writes params, as float32, and config; under a temporary name first.

    Raises:
        ValueError: the params do not fit the config; all that is wrong is named.
    """
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    compare_shapes(flat, expected_shapes(config), f"the params to save do not fit RITM {config.name!r}")
    write_tensors(Path(path), flat, {RITM_CONFIG_KEY: config.to_json()}, np.float32)


def read_ritm(path: Path) -> tuple[Params, RitmConfig]:
    """Reads what `save_ritm` wrote; the params come as float32 numpy arrays.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or its tensors do not fit its config.
    """
    text, flat = read_tensors(path, RITM_CONFIG_KEY)
    config = RitmConfig.from_json(text)
    compare_shapes(flat, expected_shapes(config), f"{path} does not fit RITM {config.name!r}")
    return unflatten_dict(flat, sep="/"), config
