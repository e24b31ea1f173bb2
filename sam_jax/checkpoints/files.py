"""Checkpoint files of all three kinds -> params, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors stores
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sam_jax.checkpoints.format import CONFIG_KEY, load_checkpoint, save_checkpoint
from sam_jax.checkpoints.guess import guess_config, recognise
from sam_jax.checkpoints.huggingface import config_from_huggingface, config_to_huggingface, preprocessor_to_huggingface
from sam_jax.checkpoints.layout import params_from_state, state_from_params, without_text_prompt
from sam_jax.clip.config import ClipConfig
from sam_jax.config import SamConfig
from sam_jax.errors import AlreadyExists, MissingFile, MissingPackage, UserError
from sam_jax.files import replacing, write_atomically
from sam_jax.modeling.encoders import known_sizes
from sam_jax.types import Params

State = dict[str, np.ndarray]

PYTORCH_MAGIC = (b"PK\x03\x04", b"\x80")  # torch.save's zip, and the bare pickle of PyTorch before 1.6
PYTORCH_SUFFIXES = (".pth", ".pt")
OTHER_SUFFIXES = (".bin", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx", ".pkl")  # surely not meant as a folder's name


def load_any(path: str | Path, config: SamConfig | None = None) -> tuple[Params, SamConfig]:
    """Reads a checkpoint of a known kind; the content tells which.

    Kinds: our own safetensors file; a Hugging Face `SamModel` folder, or the safetensors file in one; an official
    `.pth` file, which needs PyTorch. Tensors under official or Hugging Face names may come in either file format.

    Args:
        path: file or folder.
        config: of a file that does not know its own, which is to say official ones; None: what stands in
            `PATH.config.json`, else guessed from the shapes (see `guess_config`).

    Returns:
        float32 numpy params and their config.

    Raises:
        FileNotFoundError: nothing there.
        ImportError: a `.pth` file, and no PyTorch.
        ValueError: not a checkpoint; tensors missing, extra or misshapen (all are named); a config that is not the
            file's.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f"expected a checkpoint at {path}, found nothing")
    if path.is_dir():
        state = read_huggingface_state(path)
        config = agree_on_config(config, _read_huggingface_config(path), path)
    elif is_pytorch(path):
        state = _read_pytorch(path)
        if _config_beside(path).is_file():
            config = agree_on_config(config, _read_config(_config_beside(path)), path)
    elif CONFIG_KEY in read_safetensors_metadata(path):
        params, own = load_checkpoint(path)
        return params, agree_on_config(config, own, path)
    else:
        state = _read_safetensors(path)
    naming = recognise(state, str(path)).naming
    if naming == "huggingface" and path.is_file() and (path.parent / "config.json").is_file():
        config = agree_on_config(config, _read_huggingface_config(path.parent), path)
    if config is None:
        config = guess_config({name: array.shape for name, array in state.items()}, naming, str(path))
    return params_from_state(state, config, naming, str(path)), config


def convert_file(src: str | Path, dst: str | Path, *, config: SamConfig | None = None, overwrite: bool = False) -> None:
    """Converts a checkpoint. Nothing half-written is ever seen under the name `dst`.

    Args:
        src: any kind that `load_any` reads.
        dst: `*.pth` or `*.pt`: official, needs PyTorch; `*.safetensors`: ours; any other name: a Hugging Face folder.
            Beside a `.pth` of a model that is of no known size its config is written to `DST.config.json`.
        config: see `load_any`.
        overwrite: replace `dst`; in a folder, the files that a Hugging Face folder has.

    Raises:
        FileExistsError: `dst` exists, and no `overwrite`.
        ValueError: a `dst` of unknown format; and what `load_any` raises.
    """
    dst = Path(dst)
    check_destination(dst, overwrite=overwrite)
    save_any(dst, *load_any(src, config), overwrite=overwrite)


def check_destination(dst: Path, *, overwrite: bool = False) -> None:
    """Whether a checkpoint can be written there; to be asked before long work.

    Raises:
        FileExistsError, ValueError: as `convert_file`.
    """
    if dst.suffix in OTHER_SUFFIXES or (dst.is_file() and dst.suffix not in (*PYTORCH_SUFFIXES, ".safetensors")):
        raise UserError(
            f"expected a destination *.pth (official), *.safetensors (sam_jax) or a folder (Hugging Face), got {dst}"
        )
    if dst.exists() and not overwrite and not (dst.is_dir() and not any(dst.iterdir())):
        raise AlreadyExists(f"{dst} exists; choose another name or ask to overwrite it")


def save_any(dst: Path, params: Params, config: SamConfig, *, overwrite: bool = False) -> None:
    """Writes a checkpoint in the format that its name says; see `convert_file`.

    Only our own format holds a text prompt; others get the model without it.
    """
    check_destination(dst, overwrite=overwrite)
    dst.parent.mkdir(parents=True, exist_ok=True)
    if dst.suffix == ".safetensors":
        save_checkpoint(dst, params, config)
        return
    params, config = without_text_prompt(params, config)
    if dst.suffix in PYTORCH_SUFFIXES:
        _write_pytorch(dst, state_from_params(params, config, "official"), config)
    else:
        _write_huggingface_folder(dst, params, config)


def read_state(path: Path) -> State:
    """The tensors of a PyTorch or safetensors file under the names that they have there.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `load_any`.
    """
    if not path.is_file():
        raise MissingFile(f"expected a checkpoint at {path}, found no file")
    return _read_pytorch(path) if is_pytorch(path) else _read_safetensors(path)


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{path} is PyTorch's format, which needs PyTorch: pip install 'sam_jax[convert]'"
        ) from error
    return torch


def is_pytorch(path: Path) -> bool:
    """Whether a file is of the kinds that `torch.save` writes."""
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with the length of its JSON header, whose first byte may be 0x80 too.
    return head.startswith(PYTORCH_MAGIC) and head[8:] != b"{"


def load_pytorch(path: Path) -> Any:
    """What `torch.save` wrote there: tensors on the CPU in plain containers. No code in it is run.

    Raises:
        ImportError: no PyTorch.
        ValueError: not such a file, or one with other things in it.
    """
    torch = _import_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises for a foreign zip or pickle is not documented: pickle, zip, key, runtime and other errors.
    except Exception as error:
        raise UserError(
            f"expected a PyTorch checkpoint of tensors alone, cannot read {path} as one: {error}"
        ) from error


def _read_pytorch(path: Path) -> State:
    torch, state = _import_torch(path), load_pytorch(path)
    for wrapper in ("model", "state_dict"):  # training scripts put the weights beside the optimizer's state
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"expected a state dict (name -> tensor) in {path}, got {_describe(state)}")
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def _describe(value: Any) -> str:
    return f"a mapping with keys {list(value)[:8]}" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; our config is there."""
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except Exception as error:  # of safetensors
        raise UserError(
            f"expected a checkpoint (.safetensors, .pth or a Hugging Face folder), {path} is none: {error}"
        ) from error


def _read_safetensors(path: Path) -> State:
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of safetensors, or a dtype that numpy has not
        raise UserError(f"expected a safetensors file, cannot read {path} as one: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"expected JSON in {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a JSON object in {path}, got a {type(content).__name__}")
    return content


def _read_huggingface_config(folder: Path) -> SamConfig:
    preprocessor = folder / "preprocessor_config.json"
    return config_from_huggingface(
        read_json(folder / "config.json"),
        read_json(preprocessor) if preprocessor.is_file() else None,
        str(folder / "config.json"),
    )


def read_huggingface_state(folder: Path, model: str = "SamModel") -> State:
    """The tensors of a Hugging Face folder, under their names there."""
    if not (folder / "config.json").is_file():
        raise UserError(f"expected a Hugging Face {model} folder (config.json, model.safetensors), {folder} is none")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        return {name: array for shard in shards for name, array in _read_safetensors(folder / shard).items()}
    if (folder / "pytorch_model.bin").is_file():
        return _read_pytorch(folder / "pytorch_model.bin")
    raise UserError(f"expected model.safetensors or pytorch_model.bin beside config.json, {folder} has neither")


Config = TypeVar("Config", SamConfig, ClipConfig)


def agree_on_config(given: Config | None, own: Config, path: Path) -> Config:
    """The config that a file knows, which must be the one given, if one is."""
    if given is not None and given != own:
        raise UserError(f"{path} knows its config, and it is not the one given: {own} against {given}; leave it out")
    return own


def _config_beside(path: Path) -> Path:
    """Where the config of a `.pth` is: the official code would not load a file with anything but tensors in it."""
    return path.with_name(f"{path.name}.config.json")


def _read_config(path: Path) -> SamConfig:
    try:
        return SamConfig.from_json(path.read_text("utf-8"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _write_pytorch(path: Path, state: State, config: SamConfig) -> None:
    torch = _import_torch(path)
    with replacing(path) as temporary:
        torch.save({name: torch.tensor(array) for name, array in state.items()}, temporary)
        if config in known_sizes().values():  # its shapes tell
            _config_beside(path).unlink(missing_ok=True)
        else:
            write_atomically(_config_beside(path), config.to_json() + "\n")


def _write_huggingface_folder(folder: Path, params: Params, config: SamConfig) -> None:
    if folder.exists():  # it may hold other things, which stay
        _write_huggingface_files(folder, params, config)
        return
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write_huggingface_files(temporary, params, config)


def _write_huggingface_files(folder: Path, params: Params, config: SamConfig) -> None:
    with replacing(folder / "model.safetensors") as temporary:
        # transformers refuses files that do not say for which framework they are.
        save_file(state_from_params(params, config, "huggingface"), temporary, {"format": "pt"})
    contents = {
        "config.json": config_to_huggingface(config),
        "preprocessor_config.json": preprocessor_to_huggingface(config),
    }
    for name, content in contents.items():
        write_atomically(folder / name, json.dumps(content, indent=2) + "\n")
