"""Defines a model family: what the checkpoints of SAM, CLIP, RITM and the detectors have in common.

A family has params under our names, `path/to/param`, and namings: the names, and the order of the axes, that published
checkpoints have for the same tensors. One table of rules gives a naming, applied to the names that a config implies;
reading and writing both follow from it. Nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.bounds import count_tensors
from sam_jax.checkpoints.published import Published, State
from sam_jax.config import ModelConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders.base import NOTHING, Rules, Shape
from sam_jax.types import Params

C = TypeVar("C", bound=ModelConfig)
ENCODER = "image_encoder/"  # what the names of an image encoder's params begin with, in the families that have one
# What the names in most PyTorch checkpoints have in common.
PYTORCH_RULES: Rules = (
    (r"_(\d+)(?=/|$)", r"/\1"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)


class Checkpoint(NamedTuple, Generic[C]):
    """The content of a checkpoint of any family."""

    params: Params  # float32 numpy arrays, when it comes from a file
    config: C


def rename(name: str, rules: Rules) -> str:
    """Applies regular expressions and their replacements one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@dataclasses.dataclass(frozen=True)
class ForeignTensor:
    """One of our tensors as a published checkpoint holds it: theirs = ours[place].transpose(axes).reshape(shape)."""

    ours: str  # path/to/param
    place: tuple[int, ...]  # in the leading axes of ours, where it stacks modules that are alike
    axes: tuple[int, ...]
    name: str
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Naming(Generic[C]):
    """The names that one kind of published checkpoint has for the tensors of a family.

    Attributes:
        name: name of the naming.
        landmarks: a checkpoint of this kind is known by a name in `Published.names` that begins with one of these.
        rename: returns their name, given ours (`path/to/param`) and the config. {} in it stands for the number in a
            leading axis of ours.
        guess: returns the config that shapes by name tell, given where they are from too; raises a UserError if they
            do not tell one.
        own_config: returns the config that lies in a file or beside it; None: there is none.
        unused: regular expression, searched in names, of tensors that are no params.
        aliases: second names of tensors, and their names. Files hold both, or either.
        translate: renames tensors that have yet other names.
        fit: gives tensors the shapes that the config implies, where files have others.
        transposed: regular expression, searched in our names, of kernels of transposed convolutions.
        flattened: regular expression, searched in our names, of kernels whose input axes are one there.
    """

    name: str
    landmarks: tuple[str, ...]
    rename: Callable[[str, C], str]
    guess: Callable[[Mapping[str, Shape], str], C]
    own_config: Callable[[Published], C | None] = lambda _: None
    unused: str = NOTHING
    aliases: tuple[tuple[str, str], ...] = ()
    translate: Callable[[State], State] = lambda state: state
    fit: Callable[[State, C], State] = lambda state, _: state
    transposed: str = NOTHING
    flattened: str = NOTHING

    def knows(self, published: Published) -> bool:
        """Returns whether a checkpoint is of this kind."""
        return any(name.startswith(self.landmarks) for name in published.names)

    def clean(self, state: State, source: str) -> State:
        """Returns the tensors that are params, each under one name."""
        state = {name: value for name, value in self.translate(state).items() if not re.search(self.unused, name)}
        for alias, name in self.aliases:
            if alias in state:
                value = state.pop(alias)
                if not np.array_equal(state.setdefault(name, value), value):
                    raise UserError(f"{source}: {name} and {alias} must hold the same numbers, they differ")
        return state

    def axes(self, ours: str, ndim: int) -> tuple[int, ...]:
        """Returns the order of our axes in PyTorch, of a tensor without leading axes that stack modules."""
        if not ours.endswith("/kernel"):
            return tuple(range(ndim))
        if ndim == 2:
            return 1, 0  # (in, out) -> (out, in)
        if re.search(self.transposed, ours):
            return 2, 3, 0, 1  # transposed convolution: (h, w, in, out) -> (in, out, h, w)
        return 3, 2, 0, 1  # convolution: (h, w, in, out) -> (out, in, h, w)


@dataclasses.dataclass(frozen=True)
class Family(Generic[C]):
    """One kind of model that checkpoints hold.

    Attributes:
        label: what a checkpoint of it is called in messages, with its article.
        key: key of the config in the metadata of our safetensors files.
        config: class of its configs.
        init: returns random params, given a config and a key.
        sizes: published configs by name.
        namings: namings of published checkpoints; the first is the usual one.
        write_pytorch, write_huggingface: writes a `.pth` file or a Hugging Face folder, given path, params and config;
            None: there is no such format.
    """

    label: str
    key: str
    config: type[C]
    init: Callable[[C, jax.Array], Params]
    sizes: Mapping[str, C]
    namings: tuple[Naming[C], ...]
    write_pytorch: Callable[[Any, Params, C], None] | None = None
    write_huggingface: Callable[[Any, Params, C], None] | None = None

    def naming(self, name: str) -> Naming[C]:
        """Returns the naming of that name."""
        return next(naming for naming in self.namings if naming.name == name)

    def shapes(self, config: C) -> Mapping[str, Shape]:
        """Returns `path/to/param` -> shape of a model with this config."""
        return param_shapes(self.init, config)

    def known(self, config: C) -> C:
        """Returns the published config with the same numbers, if there is one, else the config itself."""
        return next((c for c in self.sizes.values() if dataclasses.replace(config, name=c.name) == c), config)

    def flatten(self, params: Params, config: C, source: str) -> dict[str, np.ndarray]:
        """Returns `path/to/param` -> array, when names and shapes are those of the config.

        Raises:
            UserError: names every missing, extra and misshapen tensor at once.
        """
        flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
        check_shapes(shapes_of(flat), self.shapes(config), source, config)
        return flat

    def foreign_tensors(self, config: C, naming: Naming[C]) -> list[ForeignTensor]:
        """Returns every tensor of a published checkpoint of this config."""
        tensors = []
        for ours, shape in self.shapes(config).items():
            name = naming.rename(ours, config)
            places = name.count("{}")
            inner = shape[places:]
            axes = naming.axes(ours, len(inner))
            theirs = tuple(inner[axis] for axis in axes)
            if re.search(naming.flattened, ours):
                theirs = (theirs[0], int(np.prod(theirs[1:])))
            tensors += [
                ForeignTensor(ours, place, axes, name.format(*place), theirs) for place in np.ndindex(shape[:places])
            ]
        return tensors

    def foreign_shapes(self, config: C, naming: Naming[C]) -> dict[str, Shape]:
        """Returns name -> shape of every tensor of a published checkpoint of this config."""
        shapes = {tensor.name: tensor.shape for tensor in self.foreign_tensors(config, naming)}
        return shapes | {alias: shapes[name] for alias, name in naming.aliases}

    def params_from_state(self, state: State, config: C, naming: Naming[C], source: str = "the state dict") -> Params:
        """Turns a state dict, as numpy arrays, into float32 params.

        Args:
            source: where the tensors are from, for the error.

        Raises:
            UserError: names every missing, extra and misshapen tensor at once, as the state dict calls them; or those
                with numbers that are not finite.
        """
        check_layers(config, len(state), source)
        state = naming.fit(naming.clean(state, source), config)
        tensors = self.foreign_tensors(config, naming)
        check_shapes(shapes_of(state), {tensor.name: tensor.shape for tensor in tensors}, source, config)
        flat = {name: np.empty(shape, np.float32) for name, shape in self.shapes(config).items()}
        for tensor in tensors:
            shape = flat[tensor.ours].shape[len(tensor.place) :]
            value = state[tensor.name].reshape([shape[axis] for axis in tensor.axes])
            flat[tensor.ours][tensor.place] = value.transpose(np.argsort(tensor.axes))
        check_finite(flat, source)
        return unflatten_dict(flat, sep="/")

    def state_from_params(self, params: Params, config: C, naming: Naming[C]) -> State:
        """Turns params into a state dict as contiguous numpy arrays of the params' dtype.

        Raises:
            UserError: the params do not fit the config.
        """
        flat = self.flatten(params, config, "the params to convert")
        state = {}
        for tensor in self.foreign_tensors(config, naming):
            value = flat[tensor.ours][tensor.place].transpose(tensor.axes)
            state[tensor.name] = np.array(value.reshape(tensor.shape), order="C")
        return state | {alias: state[name] for alias, name in naming.aliases}


@functools.lru_cache(maxsize=48)  # tracing a model takes up to a second
def param_shapes(init: Callable[..., Params], config: Any) -> Mapping[str, Shape]:
    """Returns `path/to/param` -> shape of what `init(config, key)` makes."""
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    return MappingProxyType({name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()})


def shapes_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    """Returns name -> shape of arrays."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def check_layers(config: ModelConfig, tensors: int, source: str) -> None:
    """Refuses a config with far more layers than a file with so many tensors can hold, before the model is traced.

    A file that lacks up to half of its tensors passes: what is missing is named later, one by one.

    Raises:
        UserError: it has more than twice as many.
    """
    least = count_tensors(config)
    if least > 2 * tensors:
        raise UserError(
            f"{source} has {tensors} tensors, and a model with the depths of its config at least {least}: {config}"
        )


def check_finite(arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses params that are no numbers or infinite.

    Raises:
        UserError: names the first of them.
    """
    if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(
            f"expected finite numbers in {source}, {len(bad)} of {len(arrays)} tensors hold others (NaN, infinite): "
            f"{', '.join(bad[:8])}; the training that wrote it has diverged, or the file is damaged"
        )


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], source: str, config: ModelConfig) -> None:
    """Compares the shapes of a checkpoint with the names and shapes that its config implies.

    Args:
        source: where the tensors are from, for the error.

    Raises:
        UserError: names every missing, extra and misshapen tensor at once.
    """
    problems = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"extra {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if problems:
        raise UserError(f"{source} does not fit model {config.name!r}:\n  " + "\n  ".join(problems))
