"""Reads tensors from the files that others publish, told apart by their content. No code in a file is run.

It reads a Hugging Face folder, a safetensors file, what `torch.save` writes (which needs PyTorch), a TorchScript
archive and a pickle of numpy arrays, and writes a state dict for PyTorch and a Hugging Face folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors stores
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sam_jax.checkpoints.archives import check_archive
from sam_jax.checkpoints.pickles import read_pickled_tensors
from sam_jax.checkpoints.torchscript import is_torchscript, read_torchscript
from sam_jax.errors import MissingFile, MissingPackage, UserError
from sam_jax.files import (
    open_to_read,
    open_to_write_bytes,
    parse_json,
    read_json,
    remove,
    replacing,
    replacing_folder,
    write,
)

State = Mapping[str, np.ndarray]

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
# How `torch.save` began before PyTorch 1.6: a pickle of a number that no other has.
LEGACY_PYTORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and Lightning put before all names
CONFIG_RECORD = "sam_jax_config.json"  # in the zip that `torch.save` writes, which skips what its pickle does not name
# What a Hugging Face folder says of its model, which a new model takes the place of.
HUGGINGFACE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)


@dataclasses.dataclass(frozen=True)
class Published:
    """The content of a published checkpoint.

    Attributes:
        path: path of the file or folder.
        state: the tensors under the names that they have there.
        stored_config: what a PyTorch file holds under "config" beside its tensors.
        own_config: the config that `write_pytorch` put into the file, as JSON holds it; None: there is none.
    """

    path: Path
    state: State
    stored_config: Any = None
    own_config: Any = None

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

    What a wrapper has put before all names is taken off, which is said.

    Raises:
        MissingFile: nothing is there.
        MissingPackage: it is a file of PyTorch's, and PyTorch is not installed.
        UserError: it is of no known kind, broken, or holds other things than tensors.
    """
    published = _read_published(path)
    state, prefix = published.state, ""
    while wrapper := next((w for w in WRAPPERS if state and all(name.startswith(w) for name in state)), ""):
        state, prefix = {name.removeprefix(wrapper): value for name, value in state.items()}, prefix + wrapper
    if prefix:
        _tell_prefix(path, prefix)
    return dataclasses.replace(published, state=state)


@functools.cache  # once: a command may load a model several times
def _tell_prefix(path: Path, prefix: str) -> None:
    print(f"{path}: all names begin with {prefix!r}, which is left out", file=sys.stderr)


def _read_published(path: Path) -> Published:
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


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads name -> shape from the head of a safetensors file, without its numbers.

    Raises:
        UserError: it is none.
    """
    try:
        with safe_open(path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of safetensors
        raise UserError(f"expected a safetensors file, {path} is none: {error}") from error


def read_section(content: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    """Returns the JSON object under a key; an empty one, if there is none."""
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{source}: expected a JSON object under {key}, got {str(section)[:80]!r}")
    return section


def read_processor(folder: Path) -> tuple[Mapping[str, Any] | None, str]:
    """Reads what a Hugging Face folder says of the preparation of images, and returns it with the file's path.

    Newer files hold it as "image_processor" in processor_config.json, which comes first, as it does in transformers;
    older ones are preprocessor_config.json. None: there is neither.
    """
    newer, older = folder / "processor_config.json", folder / "preprocessor_config.json"
    if newer.is_file() and "image_processor" in (content := read_json_object(newer)):
        return read_section(content, "image_processor", str(newer)), str(newer)
    return (read_json_object(older), str(older)) if older.is_file() else (None, "")


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object in {path}, got a {type(content).__name__}")
    return content


def config_beside(path: Path) -> Path:
    """Returns where earlier versions wrote the config of a `.pth`, which is in the file now."""
    return path.with_name(f"{path.name}.config.json")


def write_pytorch(path: Path, state: State, config: str) -> None:
    """Writes a state dict as `torch.save` does.

    Args:
        config: JSON to write into the same file, so that the two are replaced at once. Official code loads tensors
            alone, and does not see it.
    """
    torch = _import_torch(path)
    with replacing(path) as temporary:
        with open_to_write_bytes(temporary) as file:  # PyTorch's own writer does not say that the disk is full
            torch.save({name: torch.tensor(array) for name, array in state.items()}, file)
        with zipfile.ZipFile(temporary, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/{CONFIG_RECORD}", config)
    remove(config_beside(path))


def write_huggingface_folder(folder: Path, state: State, contents: Mapping[str, Any]) -> None:
    """Writes a Hugging Face folder: the tensors, and JSON files by name.

    A folder that is there is replaced at once; files in it that do not belong to its model stay.
    """
    with replacing_folder(folder, HUGGINGFACE_FILES) as temporary:
        # transformers refuses files that do not say for which framework they are.
        save_file(dict(state), temporary / "model.safetensors", {"format": "pt"})
        for name, content in contents.items():
            write(temporary / name, json.dumps(content, indent=2) + "\n")


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
    if zipfile.is_zipfile(path):
        check_archive(path)
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
    if not isinstance(state, Mapping) or not all(_is_plain(value) for value in state.values()):
        found = f"keys {list(state)[:8]}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        found += f" of {len(state)}" if isinstance(state, list) else ""
        raise UserError(
            f"expected {path} to map names to tensors (a state dict of one model), by itself, under 'model', or as "
            f"'config' and 'state_dict'; found {found}"
        )
    stored = content.get("config") if state is not content else None
    tensors = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    return Published(path, tensors, stored, _read_config_record(path))


def _is_plain(value: Any) -> bool:
    """Returns whether a value is a tensor of real numbers that are all there: not sparse, quantised or repeated."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _read_config_record(path: Path) -> Any:
    """Returns the config that `write_pytorch` put into a file; None: there is none, as in old files."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        record = next((name for name in archive.namelist() if name.endswith(f"/{CONFIG_RECORD}")), None)
        return None if record is None else parse_json(archive.read(record), f"{path}/{record}")


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
        shards = sorted(
            {str(shard) for shard in read_section(read_json_object(index), "weight_map", str(index)).values()}
        )
        if bad := [shard for shard in shards if Path(shard).name != shard]:
            raise UserError(f"{index}: expected names of files beside it, got {bad[:3]}")
        return {name: array for shard in shards for name, array in _read_safetensors(folder / shard).items()}
    if (folder / "pytorch_model.bin").is_file():
        return _read_pytorch(folder / "pytorch_model.bin").state
    raise UserError(f"expected model.safetensors or pytorch_model.bin beside config.json, {folder} has neither")
