"""Loads configs by name or from files: `sam-jax train finetune_coco --optimizer.learning-rate 1e-4`."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from sam_jax.errors import MissingFile, UserError
from sam_jax.files import read_text

SHIPPED = Path(__file__).with_name("configs")
PREFIXES = {"train": "", "eval": "eval_"}  # of the files' names
REPLACED = {"tiny": "small", "tiny_crops": "small_crops", "detector_tiny": "detector_small"}  # names of earlier configs
REQUIRED: Any = tyro.MISSING  # the value of a field that a config leaves to the command line

Task = Literal["train", "eval"]


def list_configs(task: Task) -> dict[str, str]:
    """Returns the names of the shipped configs of a task, with the first line of each one's docstring."""
    prefix, found = PREFIXES[task], {}
    for path in sorted(SHIPPED.glob("[!_]*.py")):
        if path.stem.startswith(PREFIXES["eval"]) == (task == "eval"):
            docstring = ast.get_docstring(ast.parse(read_text(path))) or ""
            found[path.stem.removeprefix(prefix)] = docstring.partition("\n")[0]
    return found


def is_file_name(name: str) -> bool:
    """Returns whether this is the path of a config, and not the name of a shipped one."""
    return bool(Path(name).suffix) or Path(name).name != name


def find_config(name: str, task: Task) -> Path:
    """Returns the file of a config.

    Args:
        name: path of a Python file, or the name of a shipped config; an evaluation's with or without `eval_`.

    Raises:
        MissingFile: there is no such file, or no shipped config of that name; lists those that there are.
    """
    if is_file_name(name):
        if not Path(name).is_file():
            raise MissingFile(f"expected a config at {name}, found no file")
        return Path(name)
    known = list_configs(task)
    short = name.removeprefix(PREFIXES[task])
    if short not in known and REPLACED.get(short) in known:
        raise MissingFile(f"there is no config {name} any more: {REPLACED[short]} replaced it")
    if short not in known:
        close = difflib.get_close_matches(short, known, 1)
        meant = f", did you mean {close[0]}?" if close else "."
        raise MissingFile(
            f"no config is named {name}{meant} Shipped are {', '.join(known)}; or give the path of a file"
        )
    return SHIPPED / f"{PREFIXES[task]}{short}.py"


def load_config(arguments: Sequence[str], task: Task) -> Any:
    """Returns the config of a file's `get_config()`, with overrides from the command line.

    Args:
        arguments: name or path, see `find_config`; then `--field value` pairs, where nested fields are joined by dots.
            `--help` lists them.
        task: whose shipped configs a name is looked for in.

    Raises:
        UserError: no config is given, or the file has no `get_config`.
        MissingFile: there is no such config.
        SystemExit: a field is unknown, has a bad value, or must be given and is not; tyro has printed what is wrong.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"expected a config first: one of {', '.join(list_configs(task))}, or the path of a file")
    path = find_config(arguments[0], task)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"expected a Python file with get_config(), got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config(); see the shipped {SHIPPED / 'small.py'}")
    default = module.get_config()
    return tyro.cli(type(default), default=default, args=list(arguments[1:]), prog=f"sam-jax {task} {arguments[0]}")
