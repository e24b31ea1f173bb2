"""Configs from files: `python train.py configs/tiny.py --optimizer.learning-rate 1e-4`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from sam_jax.errors import MissingFile, UserError


def load_config(arguments: Sequence[str]) -> Any:
    """The config that a file's `get_config()` returns, with overrides from the command line.

    Args:
        arguments: path of the file, then `--field value` pairs; nested fields are joined by dots. `--help` lists them.

    Raises:
        ValueError: no file given, or the file has no `get_config`.
        FileNotFoundError: no such file.
        SystemExit: an unknown field or a bad value; tyro has printed what was meant.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UserError("expected the path of a config first, such as configs/tiny.py")
    path = Path(arguments[0])
    if not path.is_file():
        raise MissingFile(f"expected a config at {path}, found no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"expected a Python file with get_config(), got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config(); see configs/tiny.py")
    default = module.get_config()
    return tyro.cli(type(default), default=default, args=list(arguments[1:]), prog=str(path))
