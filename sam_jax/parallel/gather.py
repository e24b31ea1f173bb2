"""Divides work over processes and gathers small values from all of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from sam_jax.errors import EXPECTED_ERRORS, UserError

Item = TypeVar("Item")


def shard_by_process(items: Iterable[Item]) -> list[Item]:
    """Returns this process's shard of items that every process has in the same order."""
    return list(items)[jax.process_index() :: jax.process_count()]


@contextlib.contextmanager
def sync_processes() -> Iterator[None]:
    """Waits, at the end of the block, until all processes have finished it. An error in one is raised in all.

    Raises:
        UserError: another process's UserError or OSError.
        RuntimeError: another process has met a bug; the traceback is there.
    """
    problem: Exception | None = None
    try:
        yield
    except Exception as error:  # of any kind, and raised below: the other processes would wait for this one
        problem = error
    problems = all_gather(None if problem is None else [str(problem), isinstance(problem, EXPECTED_ERRORS)])
    if problem is not None:
        raise problem
    for message, expected in filter(None, problems):
        raise UserError(message) if expected else RuntimeError(f"another process failed: {message}")


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order. All processes have to call it; it waits for the slowest.

    Args:
        value: anything that JSON can serialise.
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
