"""Reads tensors from a pickle without running what is in it.

A pickle is a program: it names functions and calls them. Here it finds none but stand-ins for the few that arrays and
dicts need, which do nothing but note down type, shape and bytes; any other name ends the reading.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sam_jax.errors import UserError
from sam_jax.files import open_to_read

NUMBERS = re.compile(r"[<>|=]?(f[248]|i[1248]|u[1248]|b1)")


def read_pickled_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a pickled state dict of numpy arrays, itself or under "model", as detectron2 publishes them.

    Raises:
        UserError: the file is cut off or no pickle, asks for anything but arrays and containers (says what), or does
            not hold a mapping from names to arrays.
    """
    with open_to_read(path) as file:
        try:
            check_memo(file)
            content = _make_unpickler(file).load()
        # Bad opcodes raise nearly anything: KeyError, IndexError, AttributeError, UnicodeDecodeError, ...
        except Exception as error:
            raise UserError(f"expected a pickle of arrays alone, cannot read {path} as one: {error}") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"expected a state dict (name -> array) in {path}, got a {type(state).__name__}")
    tensors = {name: value.array() for name, value in state.items() if hasattr(value, "array")}
    if others := [name for name in state if name not in tensors or not isinstance(name, str)]:
        raise UserError(f"expected names with arrays in {path}, these are something else: {others[:8]}")
    return tensors


def check_memo(file: BinaryIO) -> None:
    """Refuses a pickle that gives an object a number which is above those of all its objects.

    Python's unpickler makes a table up to that number: a few bytes could take all memory. Nothing of the pickle is run,
    and the file is at its start again.

    Raises:
        Exception: it is so, or this is no pickle.
    """
    for count, (instruction, number, _) in enumerate(pickletools.genops(file)):
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(number, int) and number > count:
            raise pickle.UnpicklingError(f"object number {number} after {count} instructions")
    file.seek(0)


def _make_unpickler(file: Any) -> pickle.Unpickler:
    """Returns an unpickler with stand-ins of its own: an instruction of a pickle can write to what it was given."""

    class PickledType:
        """Stands in for a numpy dtype."""

        def __init__(self, code: str, *_: Any) -> None:
            self.code, self.order = code, "="

        def __setstate__(self, state: tuple) -> None:
            self.order = state[1]

        def dtype(self) -> np.dtype:
            name = self.order.replace("|", "=") + self.code
            if not isinstance(name, str) or not NUMBERS.fullmatch(name):
                raise ValueError(f"an array of type {name!r}, which holds no numbers")
            return np.dtype(name)

    class PickledArray:
        """Stands in for a numpy array."""

        def __init__(self, *_: Any) -> None:
            self.state: tuple = ()

        def __setstate__(self, state: tuple) -> None:
            self.state = state[-4:]  # a version may come first
            self.array()

        def array(self) -> np.ndarray:
            shape, of, columns_first, data = self.state
            data = data.encode("latin1") if isinstance(data, str) else bytes(data)  # from Python 2
            return np.frombuffer(data, of.dtype()).reshape(shape, order="F" if columns_first else "C")

    def from_buffer(data: Any, of: Any, shape: tuple, order: str) -> PickledArray:
        array = PickledArray()
        array.__setstate__((shape, of, order == "F", data))
        return array

    def encode(text: str, encoding: str) -> bytes:
        return text.encode({"latin1": "latin1"}[encoding])

    core: dict[str, Callable] = {"multiarray._reconstruct": PickledArray, "numeric._frombuffer": from_buffer}
    stand_ins = {
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": encode,
        "numpy.dtype": PickledType,
        "numpy.ndarray": PickledArray,
        **{f"numpy.{part}.{name}": stand_in for part in ("core", "_core") for name, stand_in in core.items()},
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in stand_ins:
                raise pickle.UnpicklingError(f"it asks for {module}.{name}, which arrays do not need")
            return stand_ins[f"{module}.{name}"]

    return Unpickler(file, encoding="latin1")
