"""Examples -> batches. Each batch is a pure function of the seed and the step, so resuming needs no state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from sam_jax.config import DataConfig, SamConfig
from sam_jax.data.augment import prepare_example
from sam_jax.data.examples import Example
from sam_jax.types import Batch


def make_batch(
    examples: Sequence[Example],
    step: int,
    *,
    model: SamConfig,
    config: DataConfig,
    loss_size: int,
    seed: int,
    augment: bool = True,
) -> Batch:
    """The batch of one step: pictures in the order of a permutation per epoch, masks drawn at random.

    Args:
        step: counts batches from 0.
        loss_size: side of the masks, pixels; the input frame scaled.
        augment: False gives the same fitted, unflipped pictures every time.
    """
    B = config.batch_size
    rng = np.random.default_rng((seed, step))
    rows = [_picture_of(examples, step * B + i, seed) for i in range(B)]
    parts = [prepare_example(example, rng, model, config, loss_size, augment) for example in rows]
    return Batch(*(np.stack(column) for column in zip(*parts, strict=True)))


def _picture_of(examples: Sequence[Example], position: int, seed: int) -> Example:
    epoch, offset = divmod(position, len(examples))
    return examples[np.random.default_rng((seed, epoch, 1)).permutation(len(examples))[offset]]


class BatchLoader:
    """Batches from `first_step` on, prepared ahead by threads. A context manager: leaving it stops the threads."""

    def __init__(self, examples: Sequence[Example], first_step: int, *, workers: int, **make_batch_args: Any) -> None:
        if not examples:
            raise ValueError("expected at least one picture with masks to train on, got none")
        self._examples, self._args = examples, make_batch_args
        self._pool = ThreadPoolExecutor(max(workers, 1))
        self._next_step = first_step
        self._ready: deque[Future[Batch]] = deque()
        for _ in range(2 * max(workers, 1)):
            self._submit()

    def _submit(self) -> None:
        self._ready.append(self._pool.submit(make_batch, self._examples, self._next_step, **self._args))
        self._next_step += 1

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._ready.popleft().result()
        self._submit()
        return batch

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
