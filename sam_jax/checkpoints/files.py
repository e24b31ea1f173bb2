"""Reads checkpoints of every family, whatever their format, saves them in ours, and converts them.

Ours is one safetensors file with the model's config in its metadata. Reading runs no code, and only `.pth` files need
PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from sam_jax.checkpoints.clip import CLIP
from sam_jax.checkpoints.detector import DETECTOR
from sam_jax.checkpoints.family import C, Checkpoint, Family, Naming, Shape, check_finite, check_layers, check_shapes
from sam_jax.checkpoints.published import Published, State, read_metadata, read_published, read_shapes
from sam_jax.checkpoints.ritm import RITM
from sam_jax.checkpoints.sam import SAM
from sam_jax.config import NO_OPTIONS, EverythingOptions, ModelConfig
from sam_jax.errors import AlreadyExists, UserError
from sam_jax.files import make_folder, replacing
from sam_jax.types import Params

FAMILIES: tuple[Family[Any], ...] = (SAM, CLIP, RITM, DETECTOR)
EVERYTHING = "sam_jax_everything"  # key of the options for everything mode in the metadata of a SAM's safetensors file
PYTORCH_SUFFIXES = (".pth", ".pt")
OTHER_SUFFIXES = (".bin", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx", ".pkl")  # surely not meant as a folder's name


@overload
def load_checkpoint(path: str | Path, family: Family[C], config: C | None = None) -> Checkpoint[C]: ...
@overload
def load_checkpoint(path: str | Path, family: None = None, config: Any = None) -> Checkpoint[Any]: ...
def load_checkpoint(path: str | Path, family: Family[Any] | None = None, config: Any = None) -> Checkpoint[Any]:
    """Reads a checkpoint of a known kind; the content tells which.

    Kinds: our own safetensors file; an official `.pth` of SAM; OpenAI's archive of a CLIP; a published `.pth` of RITM;
    detectron2's `.pkl` or `.pth` of a ViTDet detector; a Hugging Face folder of a `SamModel` or a `CLIPModel`, or the
    safetensors file in one. Tensors under published names may come in any of these file formats.

    Args:
        path: file or folder.
        family: the family that is expected; None: any.
        config: the config of a file that does not hold its own; None: the one that the shapes tell, if they do.

    Returns:
        float32 numpy params and their config.

    Raises:
        MissingFile: nothing is there.
        MissingPackage: it is a `.pth` file, and PyTorch is not installed.
        UserError: it is no checkpoint, or one of another family; tensors are missing, extra or misshapen (all are
            named); or the config is not the file's.
    """
    path = Path(path)
    metadata = read_metadata(path)
    for own in FAMILIES:
        if own.key in metadata:
            if family not in (None, own):
                raise UserError(f"expected {family.label}, {path} is {own.label}")
            return _load_ours(path, own, metadata[own.key], config)
    published = read_published(path)
    family, naming = _recognise(published, FAMILIES if family is None else (family,))
    config = _agree(config, naming.own_config(published), path)
    if config is None:
        shapes = {name: value.shape for name, value in naming.clean(published.state, str(path)).items()}
        config = naming.guess(shapes, str(path))
    return Checkpoint(family.params_from_state(published.state, config, naming, str(path)), config)


def load_everything_options(path: str | Path) -> EverythingOptions:
    """Reads what a SAM's checkpoint says of everything mode; nothing, if it is in another format than ours or older.

    Args:
        path: file or folder, see `load_checkpoint`.

    Raises:
        MissingFile: nothing is there.
        UserError: a value is unknown or out of its range; names the file and the value.
    """
    text = read_metadata(Path(path)).get(EVERYTHING)
    if text is None:
        return NO_OPTIONS
    try:
        return EverythingOptions.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: in its metadata {EVERYTHING!r}: {error}") from error


def save_checkpoint(
    path: str | Path,
    params: Params,
    config: ModelConfig,
    dtype: Any = np.float32,
    *,
    everything: EverythingOptions = NO_OPTIONS,
) -> None:
    """Writes params and config as one of our safetensors files, under a temporary name first.

    Args:
        dtype: type of the stored numbers; float16 halves the file.
        everything: what suits a SAM in everything mode.

    Raises:
        UserError: the params do not fit the config, or a number is too large for `dtype`.
    """
    family = family_of(config)
    flat = family.flatten(params, config, "what is to be saved")
    arrays = {name: np.array(value, dtype, order="C") for name, value in flat.items()}
    if np.dtype(dtype) != np.float32:
        check_finite(arrays, f"what is to be saved as {np.dtype(dtype)}")
    metadata = {family.key: config.to_json()}
    if everything.to_fields():
        metadata[EVERYTHING] = everything.to_json()
    with replacing(Path(path)) as temporary:
        save_file(arrays, temporary, metadata)


def export_checkpoint(
    dst: str | Path,
    params: Params,
    config: ModelConfig,
    *,
    dtype: Any = np.float32,
    everything: EverythingOptions = NO_OPTIONS,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint in the format that its name says. Nothing half-written is ever seen under that name.

    Args:
        dst: `*.safetensors`: ours; of a SAM also `*.pth` or `*.pt`: official, needs PyTorch; any other name: a Hugging
            Face folder. Only ours holds a text prompt and what is said of everything mode; others get the model without
            them. A `.pth` holds the model's config beside its tensors, where the official code does not see it.
        dtype: see `save_checkpoint`; counts in our format alone.
        everything: see `save_checkpoint`.
        overwrite: replace `dst`, all at once; in a folder, the files that a Hugging Face folder has.

    Raises:
        AlreadyExists: `dst` exists, and `overwrite` is False.
        MissingPackage: `dst` is `*.pth`, and PyTorch is not installed.
        UserError: the format of `dst` is unknown, or one that the model's family does not have.
    """
    dst = Path(dst)
    check_destination(dst, overwrite=overwrite)
    family = family_of(config)
    write: Callable[..., None] | None = functools.partial(save_checkpoint, dtype=dtype, everything=everything)
    if dst.suffix != ".safetensors":
        write = family.write_pytorch if dst.suffix in PYTORCH_SUFFIXES else family.write_huggingface
    if write is None:
        raise UserError(f"expected a destination *.safetensors for {family.label}, got {dst}")
    make_folder(dst.parent)
    write(dst, params, config)


def convert_checkpoint(
    src: str | Path,
    dst: str | Path,
    *,
    config: ModelConfig | None = None,
    dtype: Any = np.float32,
    everything: EverythingOptions = NO_OPTIONS,
    overwrite: bool = False,
) -> None:
    """Reads a checkpoint of any family and writes it in the format that the name of `dst` says.

    Args:
        src: see `load_checkpoint`.
        dst: see `export_checkpoint`.
        dtype: likewise.
        overwrite: likewise.
        config: the config of a file that does not hold its own.
        everything: what to say of everything mode, in place of what `src` says.

    Raises:
        MissingFile, AlreadyExists, MissingPackage, UserError: as `load_checkpoint` and `export_checkpoint`.
    """
    check_destination(dst, everything=everything, overwrite=overwrite)
    family = None if config is None else family_of(config)
    if everything.to_fields():
        family = family or SAM
    params, own = load_checkpoint(src, family, config)
    everything = dataclasses.replace(load_everything_options(src), **everything.to_fields())
    export_checkpoint(dst, params, own, dtype=dtype, everything=everything, overwrite=overwrite)


def check_destination(dst: str | Path, *, everything: EverythingOptions = NO_OPTIONS, overwrite: bool = False) -> None:
    """Checks that a checkpoint can be written there, before long work.

    Args:
        everything: what was asked to be said of everything mode.

    Raises:
        AlreadyExists: as `export_checkpoint`.
        UserError: the format is unknown, or cannot hold what `everything` says.
    """
    dst = Path(dst)
    if everything.to_fields() and dst.suffix != ".safetensors":
        raise UserError(
            f"expected a destination *.safetensors, which alone holds options of everything mode, got {dst}"
        )
    if dst.suffix in OTHER_SUFFIXES or (dst.is_file() and dst.suffix not in (*PYTORCH_SUFFIXES, ".safetensors")):
        raise UserError(
            f"expected a destination *.pth (official), *.safetensors (sam_jax) or a folder (Hugging Face), got {dst}"
        )
    if dst.exists() and not overwrite and not (dst.is_dir() and not any(dst.iterdir())):
        raise AlreadyExists(
            f"{dst} exists; choose another name, or say --overwrite (in Python overwrite=True) to replace it"
        )


def family_of(config: ModelConfig) -> Family[Any]:
    """Returns the family of the models with such a config."""
    return next(family for family in FAMILIES if isinstance(config, family.config))


def expected_shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """Returns `path/to/param` -> shape of a model with this config."""
    return family_of(config).shapes(config)


def foreign_shapes(config: ModelConfig, naming: str) -> dict[str, Shape]:
    """Returns name -> shape of every tensor of a published checkpoint of this config.

    Args:
        naming: "official" or "huggingface" (SAM), "openai" (CLIP), "published" (RITM), "detectron2" (detectors).
    """
    family = family_of(config)
    return family.foreign_shapes(config, family.naming(naming))


def params_from_state(state: State, config: ModelConfig, naming: str, source: str = "the state dict") -> Params:
    """Turns a published state dict, as numpy arrays, into float32 params.

    Args:
        naming: as in `foreign_shapes`.
        source: where the tensors are from, for the error.

    Raises:
        UserError: names every missing, extra and misshapen tensor at once, as the state dict calls them.
    """
    family = family_of(config)
    return family.params_from_state(state, config, family.naming(naming), source)


def state_from_params(params: Params, config: ModelConfig, naming: str) -> State:
    """Turns params into a published state dict, as contiguous numpy arrays of the params' dtype.

    Args:
        naming: as in `foreign_shapes`.

    Raises:
        UserError: the params do not fit the config.
    """
    family = family_of(config)
    return family.state_from_params(params, config, family.naming(naming))


def _load_ours(path: Path, family: Family[C], text: str, config: C | None) -> Checkpoint[C]:
    try:
        own = family.config.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _agree(config, own, path)
    shapes = read_shapes(path)
    check_layers(own, len(shapes), str(path))
    check_shapes(shapes, family.shapes(own), str(path), own)
    flat = {name: value.astype(np.float32, copy=False) for name, value in read_published(path).state.items()}
    check_finite(flat, str(path))
    return Checkpoint(unflatten_dict(flat, sep="/"), own)


def _recognise(published: Published, families: tuple[Family[Any], ...]) -> tuple[Family[Any], Naming[Any]]:
    for family in families:
        for naming in family.namings:
            if naming.knows(published):
                return family, naming
    known = [f"{f.label} ({' or '.join(mark for n in f.namings for mark in n.landmarks)})" for f in families]
    raise UserError(
        f"expected {', '.join(known)}, of which the tensors in brackets are a sign; {published.path} has "
        f"{len(published.state)} others: {sorted(published.state)[:8]}"
    )


def _agree(given: C | None, own: C | None, path: Path) -> C | None:
    """Returns the config that a file knows, which must be the one given, if one is."""
    if None not in (given, own) and given != own:
        raise UserError(f"{path} knows its config, and it is not the one given: {own} against {given}; leave it out")
    return given if own is None else own
