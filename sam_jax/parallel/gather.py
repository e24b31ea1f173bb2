"""What is divided over processes, and small values from every process to every process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from sam_jax.errors import UserError

Thing = TypeVar("Thing")


def shard_by_process(things: Iterable[Thing]) -> list[Thing]:
    """This process's part of what every process has in the same order."""
    return list(things)[jax.process_index() :: jax.process_count()]


@contextlib.contextmanager
def sync_processes() -> Iterator[None]:
    """What each process does within it, all have done after it. An error of one is an error of all.

    Raises:
        ValueError: another process's ValueError or OSError.
    """
    problem: Exception | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        problem = error
    problems = all_gather(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    if first := next(filter(None, problems), None):
        raise UserError(first)


def all_gather(value: Any) -> list[Any]:
    """What each process gives, in the order of processes; all have to call this. Waits for the slowest.

    Args:
        value: anything that JSON takes.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array(len(data), np.int32)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
