"""Simulates a user who clicks on objects and corrects the masks that a segmenter predicts, image by image."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Bool

from sam_jax.data.examples import Example
from sam_jax.errors import UserError
from sam_jax.evals.clicks import Click, first_click, next_click, random_click
from sam_jax.evals.metrics import mask_iou
from sam_jax.evals.records import MaskRecord
from sam_jax.evals.segmenters import Clicks, Segmenter
from sam_jax.ops.rle import decode_rle


@dataclasses.dataclass(frozen=True)
class ClickRules:
    """How the simulated user clicks."""

    clicks: int  # the most clicks per object
    first: Literal["center", "random"] = "center"  # first click: the pixel farthest from the boundary, or any
    seed: int = 0  # seed of random first clicks
    enough: float | None = None  # IoU at which an object gets no further click; None: no such limit


@dataclasses.dataclass(frozen=True)
class SimulationResult:
    """The records of one image."""

    records: list[MaskRecord]
    problems: list[str]  # messages about masks, or the whole image, that could not be used
    complete: bool = True  # False if the image itself could not be used; the next run tries it again


def simulate_clicks(
    segmenter: Segmenter, example: Example, rules: ClickRules, run: Callable[..., Iterator] = map
) -> SimulationResult:
    """Simulates clicks on every annotated mask of an image.

    Args:
        run: a function like `map`; the `map` of an executor evaluates masks in parallel.

    Raises:
        UserError: the image cannot be read.
        ValueError: a predicted mask has another size than the image.
    """
    ground_truths = [decode_rle(mask) for mask in example.masks]
    ignore = None if example.ignore is None else decode_rle(example.ignore)
    user = _SimulatedUser(rules, ignore, zlib.crc32(example.name.encode()))
    starts = list(run(user.click_first, ground_truths, range(len(ground_truths))))
    problems = [f"mask {i} has no pixel to click" for i, start in enumerate(starts) if start is None]
    numbers = [i for i, start in enumerate(starts) if start is not None]
    given = [Clicks([start[0]], [start[1]]) for start in starts if start is not None]
    records: list[MaskRecord] = [{"mask": i, "area": int(ground_truths[i].sum()), "iou": []} for i in numbers]
    if not records:
        return SimulationResult(records, problems)
    session = segmenter.open_session(example.image())
    finished: set[int] = set()  # objects that get no further click: no wrong pixel is left, or the IoU is high enough
    for turn in range(rules.clicks):
        active = [i for i in range(len(records)) if i not in finished]
        if not active:
            break
        predictions = session.segment(given)
        evaluated = run(
            user.evaluate,
            [ground_truths[numbers[i]] for i in active],
            [predictions[i] if turn == 0 else predictions[i][:1] for i in active],
            [given[i].points for i in active],
        )
        for i, (ious, following) in zip(active, evaluated, strict=True):
            records[i]["iou"].append(ious[0])
            if turn == 0:
                records[i]["best"] = max(ious)
            if following is None:
                finished.add(i)
            elif turn < rules.clicks - 1:
                given[i].points.append(following[0])
                given[i].labels.append(following[1])
    for record in records:
        record["iou"] += record["iou"][-1:] * (rules.clicks - len(record["iou"]))
    return SimulationResult(records, problems)


@dataclasses.dataclass(frozen=True)
class _SimulatedUser:
    rules: ClickRules
    ignore: Bool[np.ndarray, "H W"] | None
    number: int  # identifies the image in the seeds of random clicks

    def click_first(self, ground_truth: Bool[np.ndarray, "H W"], mask: int) -> Click | None:
        try:
            if self.rules.first == "random":
                return random_click(
                    ground_truth, np.random.default_rng([self.rules.seed, self.number, mask]), self.ignore
                )
            return first_click(ground_truth, self.ignore)
        except UserError:
            return None

    def evaluate(
        self, ground_truth: Bool[np.ndarray, "H W"], masks: Bool[np.ndarray, "M H W"], clicked: list[tuple[int, int]]
    ) -> tuple[list[float], Click | None]:
        ious = [round(mask_iou(mask, ground_truth, self.ignore), 6) for mask in masks]
        if self.rules.enough is not None and ious[0] >= self.rules.enough:
            return ious, None
        return ious, next_click(ground_truth, masks[0], clicked, self.ignore)


def simulate_images(
    segmenter: Segmenter, examples: Sequence[Example], rules: ClickRules, workers: int = 2
) -> Iterator[SimulationResult]:
    """Runs `simulate_clicks` on each image, several at a time; yields the results in order.

    An image that cannot be used gives a result that says so. Threads are enough: OpenCV, NumPy and JAX release the GIL,
    so that the device computes for one image while the host evaluates the masks of another
    (benchmarks/click_workers.py measures threads and processes).
    """

    def attempt(example: Example) -> SimulationResult:
        try:
            return simulate_clicks(segmenter, example, rules, evaluators.map)
        except UserError as error:
            return SimulationResult([], [str(error)], complete=False)

    pool, evaluators = ThreadPoolExecutor(max(1, workers)), ThreadPoolExecutor(max(1, workers))
    try:
        yield from pool.map(attempt, examples)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C only the images in progress are finished
        evaluators.shutdown()
