"""Resumable evaluation image by image: predict the missing results, then score. Bad images are named and left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import numpy as np

from sam_jax.data.bad_records import count_reasons
from sam_jax.errors import BadRecord, UserError
from sam_jax.evals.ground_truth import GroundTruthImage
from sam_jax.evals.mask_scores import Result
from sam_jax.evals.report import LEFT_OUT, list_section
from sam_jax.evals.result_files import ResultFolder
from sam_jax.parallel.gather import all_gather, shard_by_process, sync_processes
from sam_jax.progress import ProgressBar

Failures = dict[str, str]
"""The reason for each image, by name, that cannot be used."""
Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def predict_missing(
    folder: ResultFolder,
    gt_images: Sequence[GroundTruthImage],
    predict: Callable[[list[GroundTruthImage], list[np.ndarray]], list[list[Result]]],
    batch_size: int,
    label: str,
) -> Failures:
    """Predicts the images without results, in batches, while the next images are read.

    Several processes that see the same folder divide the images among them; each returns when all are done.

    Returns:
        The images that cannot be read; the same in every process.
    """
    failures: Failures = {}
    todo = folder.missing(shard_by_process(gt_images))
    with sync_processes(), ProgressBar(total=len(todo), desc=f"{label}: predict", unit="image") as bar:
        good = _read_ahead(todo, 2 * batch_size, failures)
        while batch := list(itertools.islice(good, batch_size)):
            members = [gt_image for gt_image, _ in batch]
            for gt_image, results in zip(members, predict(members, [image for _, image in batch]), strict=True):
                folder.write(gt_image, results)
            bar.update(len(batch))
        bar.update(len(failures))
    everywhere = {name: why for part in all_gather(failures) for name, why in part.items()}
    return {gt_image.name: everywhere[gt_image.name] for gt_image in gt_images if gt_image.name in everywhere}


def _read_ahead(
    gt_images: Iterable[GroundTruthImage], ahead: int, failures: Failures
) -> Iterator[tuple[GroundTruthImage, np.ndarray]]:
    remaining = iter(gt_images)
    with ThreadPoolExecutor(2) as pool:
        waiting = [(gt_image, pool.submit(gt_image.image)) for gt_image in itertools.islice(remaining, ahead)]
        while waiting:
            gt_image, future = waiting.pop(0)
            waiting += [(following, pool.submit(following.image)) for following in itertools.islice(remaining, 1)]
            try:
                yield gt_image, future.result()
            except BadRecord as error:
                failures[gt_image.name] = str(error)


def score_images(
    score: Callable[[Task], Outcome], tasks: dict[str, Task], failures: Failures, *, workers: int, label: str
) -> list[Outcome]:
    """Scores each image, in order. With more than one worker it uses processes, so everything must be picklable.

    Args:
        tasks: the argument of `score` for each image name.
        failures: images for which `score` raises a UserError are added; their outcome is left out.

    Raises:
        UserError: no image can be scored.
    """
    outcomes = []
    done = _each(_Attempt(score), list(tasks.values()), workers)
    for name, outcome in zip(
        tasks, ProgressBar(done, total=len(tasks), desc=f"{label}: score", unit="image"), strict=True
    ):
        if isinstance(outcome, _Failed):
            failures[name] = outcome.reason
        else:
            outcomes.append(outcome)
    refuse_nothing(outcomes, failures, label)
    return outcomes


def refuse_nothing(outcomes: Sequence[object], failures: Failures, label: str) -> None:
    """Refuses an evaluation of no image.

    Raises:
        UserError: there are no outcomes; says why the first image has none.
    """
    if not outcomes:
        first = next((f"{name}: {reason}" for name, reason in failures.items()), None)
        raise UserError(f"{label}: none of {len(failures)} images can be scored; the first: {first}")


def describe_failures(failures: dict[str, Failures], problems: Iterable[BadRecord] = ()) -> str:
    """Formats, for a report, what is left out: entries of the file of annotations by reason, images by method."""
    return list_section(
        LEFT_OUT,
        [
            *count_reasons(problems),
            *(
                f"{method}, {name}: {reason}"
                for method, by_name in failures.items()
                for name, reason in by_name.items()
            ),
        ],
    )


class _Failed:
    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Attempt:
    """A function whose UserErrors come back as outcomes. A class, to be picklable."""

    def __init__(self, work: Callable) -> None:
        self.work = work

    def __call__(self, task: object) -> object:
        try:
            return self.work(task)
        except UserError as error:
            return _Failed(str(error))


def _each(work: Callable, tasks: Sequence, workers: int) -> Iterator:
    if workers <= 1:
        yield from map(work, tasks)
        return
    # Spawned: a fork of a process in which JAX computes may hang.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            yield from pool.map(work, tasks, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)
