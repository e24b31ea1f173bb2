"""Reads the tensors of a TorchScript archive as data: its code does not run, and PyTorch isn't needed."""

from __future__ import annotations

import collections
import functools
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sam_jax.checkpoints.archives import check_archive
from sam_jax.checkpoints.pickles import check_memo
from sam_jax.errors import UserError

DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Module:
    """Stands for any class of the archive: it only holds what the pickle gives it."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def is_torchscript(path: Path) -> bool:
    """Returns whether a file is a zip with code beside its data, as TorchScript writes it.

    Raises:
        UserError: it is a zip that is damaged or compressed.
    """
    if not zipfile.is_zipfile(path):
        return False
    names = check_archive(path)
    return any(name.endswith("/data.pkl") for name in names) and any("/code/" in name for name in names)


def read_torchscript(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors that the archive's module and its submodules hold, by name.

    Raises:
        UserError: this is no such archive, or its pickle asks for anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            data = io.BytesIO(archive.read(f"{root}data.pkl"))
            check_memo(data)
            read_storage = functools.cache(lambda key: archive.read(f"{root}data/{key}"))  # tensors may share one
            module = _Unpickler(data, read_storage).load()
    # Broken zips, pickles and tensors raise many kinds of errors.
    except Exception as error:
        raise UserError(f"expected a TorchScript archive of tensors, cannot read {path} as one: {error}") from error
    tensors: dict[str, np.ndarray] = {}
    _collect(module, "", tensors)
    return tensors


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(data)
        self._read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle":  # marks a value with its type: a list of numbers and the like
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no tensor")

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, dtype, key, _, _ = reference
        if kind != "storage":
            raise pickle.UnpicklingError(f"it asks for a {kind!r}")
        return np.frombuffer(self._read_storage(key), dtype)


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and not (offset >= 0 and min(stride, default=0) >= 0 and last < len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {size} reaches beyond its {len(storage)} numbers")
    if math.prod(size) > len(storage):  # a stride of 0: a small file for an array of any size
        raise pickle.UnpicklingError(f"a tensor of shape {size} repeats its {len(storage)} numbers")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _collect(value: Any, name: str, tensors: dict[str, np.ndarray]) -> None:
    if isinstance(value, np.ndarray):
        tensors[name] = value
    elif isinstance(value, _Module) and isinstance(value.attributes, dict):
        for key, child in value.attributes.items():
            _collect(child, f"{name}.{key}" if name else str(key), tensors)
