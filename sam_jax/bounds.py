"""Checks the fields of configs: each value has the type of its annotation and lies within the bounds given there.

A bound is part of the type, `rate: Annotated[float, Within(0, 1)]`, and most have a name, `rate: Fraction`. Configs
come from command lines, from users' Python files and from the metadata of checkpoints that anybody may have written,
so nothing is traced or allocated for a value that was not checked.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from sam_jax.errors import UserError

LONGEST_TEXT = 2000  # characters of a name or a regular expression
LONGEST_TUPLE = 100_000  # values of a tuple without a fixed length


class Within(NamedTuple):
    """The least and the greatest value of a number; not a number is never within."""

    low: float
    high: float
    above: bool = False  # the least value itself is not allowed

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:,} {'and up ' if self.above else ''}to {self.high:,}"


class Layers(NamedTuple):
    """Marks the number of modules that are alike, of which each has at least so many tensors."""

    tensors: int


class Pattern(NamedTuple):
    """Marks a text that is a regular expression."""


# Types of fields. The greatest values are far beyond any model or machine, and small enough to be checked by tracing.
Count = Annotated[int, Within(1, 1_000_000)]
CountOrNone = Annotated[int, Within(0, 1_000_000)]  # where 0 stands for none, or for all
Steps = Annotated[int, Within(0, 1_000_000_000)]
Period = Annotated[int, Within(1, 1_000_000_000)]  # steps from one to the next
Seed = Annotated[int, Within(0, 2**32 - 1)]
Threads = Annotated[int, Within(0, 1024)]
Side = Annotated[int, Within(1, 8192)]  # of an image, pixels
Width = Annotated[int, Within(1, 16_384)]  # channels
WidthOrNone = Annotated[int, Within(0, 16_384)]
Depth = Annotated[int, Within(0, 1000)]
Area = Annotated[int, Within(0, 1_000_000_000)]  # pixels
Batch = Annotated[int, Within(1, 65_536)]
Fraction = Annotated[float, Within(0, 1)]
Rate = Annotated[float, Within(0, 0.999)]  # of dropout and drop path
Decay = Annotated[float, Within(0, 0.9999999)]  # of a moving average
Factor = Annotated[float, Within(0, 1_000_000)]
PositiveFactor = Annotated[float, Within(0, 1_000_000, above=True)]
Mean = Annotated[float, Within(-1000, 1000)]  # of a colour channel
Deviation = Annotated[float, Within(0.001, 1000)]
Growth = Annotated[float, Within(1, 100)]
Pixels = Annotated[float, Within(0, 8192)]  # a distance
PositivePixels = Annotated[float, Within(0, 8192, above=True)]
CategoryId = Annotated[int, Within(0, 1_000_000_000)]
Rounds = Annotated[int, Within(0, 1000)]
Share = Annotated[float, Within(0, 1, above=True)]  # something must be left
Clicks = Annotated[int, Within(1, 1000)]
GridSide = Annotated[int, Within(1, 1024)]  # points along a side
Port = Annotated[int, Within(0, 65_535)]
Scale = Annotated[float, Within(0.01, 100)]  # of an image
Boxes = Annotated[int, Within(1, 100_000)]  # kept or drawn from an image
Regex = Annotated[str, Pattern()]


@dataclasses.dataclass(frozen=True)
class CheckedFields:
    """The base of configs, whose fields are checked when one is made. A path may be given as text."""

    def __post_init__(self) -> None:
        for name, annotation in field_types(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, str) and _is_path(annotation):
                object.__setattr__(self, name, Path(value))
        check_fields(self)


def check_fields(config: Any) -> None:
    """Checks every field of a dataclass against its annotation.

    Types that are not known here, such as arrays, are not looked at.

    Raises:
        UserError: a value has another type or is out of its bounds; names the field.
    """
    for name, annotation in field_types(type(config)).items():
        value = getattr(config, name)
        # An option that must be given and is not yet: the command line's parser says so.
        if problem := None if _is_missing(value) else _problem(value, annotation):
            raise UserError(f"expected {name} to be {problem}, got {_shown(value)}")


def count_tensors(config: Any) -> int:
    """Returns how many tensors a model with this config has at least, by the fields that are `Layers`."""
    fields = field_types(type(config))
    return sum(_layer_tensors(getattr(config, name), annotation) for name, annotation in fields.items())


def field_types(of: type) -> Mapping[str, Any]:
    """Returns the annotations of a dataclass's fields."""
    hints = typing.get_type_hints(of, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(of)}


def unbounded(annotation: Any) -> bool:
    """Returns whether a type has a number without bounds in it."""
    kind, marks = _parts(annotation)
    if kind in (int, float):
        return not any(isinstance(mark, Within) for mark in marks)
    return any(unbounded(argument) for argument in typing.get_args(kind) if typing.get_origin(kind) is not Literal)


def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns a type, and what it is annotated with."""
    if typing.get_origin(annotation) is not Annotated:
        return annotation, ()
    kind, *marks = typing.get_args(annotation)
    return kind, tuple(marks)


def _is_path(annotation: Any) -> bool:
    """Returns whether a type is a path, or a path or None."""
    kind, _ = _parts(annotation)
    return kind is Path or set(typing.get_args(kind)) == {Path, type(None)}


def _problem(value: Any, annotation: Any) -> str | None:
    """Returns what a value was expected to be; None: it is."""
    kind, marks = _parts(annotation)
    bounds = next((mark for mark in marks if isinstance(mark, Within)), None)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        what = "a whole number" if kind is int else "a number"
        return None if fits and (bounds is None or bounds.holds(value)) else f"{what} {bounds or ''}".strip()
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is Path:
        return None if isinstance(value, Path) else "a path"
    if kind is str:
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            return f"a text of at most {LONGEST_TEXT:,} characters"
        return _pattern_problem(value) if any(isinstance(mark, Pattern) for mark in marks) else None
    if origin is Literal:
        return None if value in arguments else " or ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        problems = [_problem(value, argument) for argument in arguments]
        return None if None in problems else " or ".join(problem for problem in problems if problem)
    if kind is type(None):
        return None if value is None else ""
    if origin is tuple:
        return _tuple_problem(value, arguments)
    if dataclasses.is_dataclass(kind):
        return None if isinstance(value, typing.cast(type, kind)) else f"a {kind.__name__}"  # type: ignore[union-attr]
    return None


def _tuple_problem(value: Any, arguments: tuple[Any, ...]) -> str | None:
    if not isinstance(value, tuple):
        return "a list"
    if arguments[-1] is not ...:
        if len(value) != len(arguments):
            return f"a list of {len(arguments)} values"
        pairs = list(zip(value, arguments, strict=True))
    elif len(value) > LONGEST_TUPLE:
        return f"a list of at most {LONGEST_TUPLE:,} values"
    else:
        pairs = [(item, arguments[0]) for item in value]
    return next((f"a list in which each is {found}" for pair in pairs if (found := _problem(*pair))), None)


def _pattern_problem(text: str) -> str | None:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:  # a bad one, a number too large, too deep
        return f"a regular expression ({error})"
    return None


def _layer_tensors(value: Any, annotation: Any) -> int:
    kind, marks = _parts(annotation)
    if isinstance(value, tuple) and typing.get_origin(kind) is tuple:
        return sum(_layer_tensors(item, typing.get_args(kind)[0]) for item in value)
    if dataclasses.is_dataclass(value):
        return count_tensors(value)
    return sum(value * mark.tensors for mark in marks if isinstance(mark, Layers))


def _is_missing(value: Any) -> bool:
    return type(value).__module__.startswith("tyro.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
