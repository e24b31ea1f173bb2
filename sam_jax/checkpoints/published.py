"""Reads tensors from the files that others publish, told apart by their content. No code in a file is run.

It reads a Hugging Face folder, a safetensors file, what `torch.save` writes (which needs PyTorch), a TorchScript
archive and a pickle of numpy arrays, and writes a state dict for PyTorch and a Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors stores
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sam_jax.checkpoints.pickles import read_pickled_tensors
from sam_jax.checkpoints.torchscript import is_torchscript, read_torchscript
from sam_jax.errors import MissingFile, MissingPackage, UserError
from sam_jax.files import make_folder, open_to_read, read_json, remove, replacing, write_atomically

State = Mapping[str, np.ndarray]

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
# How `torch.save` began before PyTorch 1.6: a pickle of a number that no other has.
LEGACY_PYTORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


@dataclasses.dataclass(frozen=True)
class Published:
    """The content of a published checkpoint.

    Attributes:
        path: path of the file or folder.
        state: the tensors under the names that they have there.
        stored_config: what a PyTorch file holds under "config" beside its tensors.
    """

    path: Path
    state: State
    stored_config: Any = None

    @property
    def names(self) -> list[str]:
        """Returns the names of the tensors, and `config.KEY` for what is stored beside them."""
        stored = self.stored_config if isinstance(self.stored_config, Mapping) else ()
        return [*self.state, *(f"config.{key}" for key in stored)]

    @property
    def huggingface_config(self) -> Path:
        """Returns the path of config.json in the folder, or beside the file, whether or not it is there."""
        return (self.path if self.path.is_dir() else self.path.parent) / "config.json"


def read_published(path: Path) -> Published:
    """Reads the tensors of a file or folder of a known kind; the content tells which.

    Raises:
        MissingFile: nothing is there.
        MissingPackage: it is a file of PyTorch's, and PyTorch is not installed.
        UserError: it is of no known kind, broken, or holds other things than tensors.
    """
    if not path.exists():
        raise MissingFile(f"expected a checkpoint at {path}, found nothing")
    if path.is_dir():
        return Published(path, _read_huggingface_folder(path))
    if is_torchscript(path):
        return Published(path, read_torchscript(path))
    with open_to_read(path) as file:
        head = file.read(len(LEGACY_PYTORCH))
    if head.startswith((ZIP, LEGACY_PYTORCH)):
        return _read_pytorch(path)
    # A safetensors file starts with the length of its JSON header, whose first byte may be that of a pickle too.
    if path.suffix == ".pkl" or (head.startswith(PICKLE) and head[8:9] != b"{"):
        return Published(path, read_pickled_tensors(path))
    return Published(path, _read_safetensors(path))


def read_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata of a safetensors file; of any other file or folder it is empty.

    Raises:
        MissingFile: nothing is there.
    """
    if not path.exists():
        raise MissingFile(f"expected a checkpoint at {path}, found nothing")
    if path.is_dir():
        return {}
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except Exception:  # of safetensors, for files of other kinds
        return {}


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object in {path}, got a {type(content).__name__}")
    return content


def config_beside(path: Path) -> Path:
    """Returns where the config of a `.pth` is: official code would not load a file with anything but tensors in it."""
    return path.with_name(f"{path.name}.config.json")


def write_pytorch(path: Path, state: State, config: str | None) -> None:
    """Writes a state dict as `torch.save` does.

    Args:
        config: JSON to write beside it; None: there shall be none, and one that is there is removed.
    """
    torch = _import_torch(path)
    with replacing(path) as temporary:
        torch.save({name: torch.tensor(array) for name, array in state.items()}, temporary)
        if config is None:
            remove(config_beside(path))
        else:
            write_atomically(config_beside(path), config + "\n")


def write_huggingface_folder(folder: Path, state: State, contents: Mapping[str, Any]) -> None:
    """Writes a Hugging Face folder: the tensors, and JSON files by name. Other files that are there stay."""
    if folder.exists():
        _write_huggingface_files(folder, state, contents)
        return
    with replacing(folder) as temporary:
        make_folder(temporary)
        _write_huggingface_files(temporary, state, contents)


def _write_huggingface_files(folder: Path, state: State, contents: Mapping[str, Any]) -> None:
    with replacing(folder / "model.safetensors") as temporary:
        # transformers refuses files that do not say for which framework they are.
        save_file(dict(state), temporary, {"format": "pt"})
    for name, content in contents.items():
        write_atomically(folder / name, json.dumps(content, indent=2) + "\n")


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{path} is PyTorch's format, which needs PyTorch: pip install 'sam_jax[convert]'"
        ) from error
    return torch


def _read_pytorch(path: Path) -> Published:
    torch = _import_torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises for a foreign zip or pickle is not documented: pickle, zip, key, runtime and other errors.
    except Exception as error:
        raise UserError(
            f"expected a PyTorch checkpoint of tensors alone, cannot read {path} as one: {error}"
        ) from error
    state = content
    for wrapper in ("model", "state_dict"):  # training scripts put the weights beside the optimizer's state
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = f"keys {list(state)[:8]}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        found += f" of {len(state)}" if isinstance(state, list) else ""
        raise UserError(
            f"expected {path} to map names to tensors (a state dict of one model), by itself, under 'model', or as "
            f"'config' and 'state_dict'; found {found}"
        )
    stored = content.get("config") if state is not content else None
    return Published(path, {name: tensor.float().numpy() for name, tensor in state.items()}, stored)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of safetensors, or a dtype that numpy has not
        raise UserError(
            f"expected a checkpoint (.safetensors, .pth or a Hugging Face folder), {path} is none: {error}"
        ) from error


def _read_huggingface_folder(folder: Path) -> State:
    if not (folder / "config.json").is_file():
        raise UserError(f"expected a Hugging Face folder (config.json, model.safetensors), {folder} is none")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")
    if index.is_file():
        shards = sorted(set(read_json_object(index)["weight_map"].values()))
        return {name: array for shard in shards for name, array in _read_safetensors(folder / shard).items()}
    if (folder / "pytorch_model.bin").is_file():
        return _read_pytorch(folder / "pytorch_model.bin").state
    raise UserError(f"expected model.safetensors or pytorch_model.bin beside config.json, {folder} has neither")
