"""The game of clicks on one image after another: a simulated user against a segmenter."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from jaxtyping import Bool

from sam_jax.data.examples import Example
from sam_jax.evals.clicks import Click, first_click, next_click, random_click
from sam_jax.evals.metrics import mask_iou
from sam_jax.evals.records import MaskRecord
from sam_jax.evals.segmenters import Clicks, Segmenter
from sam_jax.ops.rle import decode_rle


@dataclasses.dataclass(frozen=True)
class ClickRules:
    """How the user clicks."""

    clicks: int  # the last number of clicks
    first: Literal["center", "random"] = "center"  # farthest from the boundary, or any pixel; later ones: the former
    seed: int = 0  # of random first clicks
    enough: float | None = None  # an object whose IoU is not below this gets no further click


@dataclasses.dataclass(frozen=True)
class SimulationResult:
    """One image's results."""

    records: list[MaskRecord]
    problems: list[str]  # what could not be used: a mask, or all of the image
    complete: bool = True  # False: the image itself can't be used; another run tries again


def simulate_clicks(
    segmenter: Segmenter, example: Example, rules: ClickRules, run: Callable[..., Iterator] = map
) -> SimulationResult:
    """Plays on every mask of an image.

    Args:
        run: as `map`; that of an executor judges masks side by side.

    Raises:
        ValueError: the image can't be read, or a predicted mask has another size than the image.
    """
    ground_truths = [decode_rle(mask) for mask in example.masks]
    ignore = None if example.ignore is None else decode_rle(example.ignore)
    user = _SimulatedUser(rules, ignore, zlib.crc32(example.name.encode()))
    starts = list(run(user.start, ground_truths, range(len(ground_truths))))
    problems = [f"mask {i} has no pixel to click" for i, start in enumerate(starts) if start is None]
    numbers = [i for i, start in enumerate(starts) if start is not None]
    given = [Clicks([start[0]], [start[1]]) for start in starts if start is not None]
    records: list[MaskRecord] = [{"mask": i, "area": int(ground_truths[i].sum()), "iou": []} for i in numbers]
    if not records:
        return SimulationResult(records, problems)
    session = segmenter.open_session(example.image())
    finished: set[int] = set()  # without an error left, or good enough: the user clicks no more and keeps what there is
    for turn in range(rules.clicks):
        playing = [i for i in range(len(records)) if i not in finished]
        if not playing:
            break
        predictions = session.segment(given)
        judged = run(
            user.judge,
            [ground_truths[numbers[i]] for i in playing],
            [predictions[i] if turn == 0 else predictions[i][:1] for i in playing],
            [given[i].points for i in playing],
        )
        for i, (ious, following) in zip(playing, judged, strict=True):
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
    number: int  # of the image, for its random numbers

    def start(self, ground_truth: Bool[np.ndarray, "H W"], mask: int) -> Click | None:
        try:
            if self.rules.first == "random":
                return random_click(
                    ground_truth, np.random.default_rng([self.rules.seed, self.number, mask]), self.ignore
                )
            return first_click(ground_truth, self.ignore)
        except ValueError:
            return None

    def judge(
        self, ground_truth: Bool[np.ndarray, "H W"], masks: Bool[np.ndarray, "M H W"], clicked: list[tuple[int, int]]
    ) -> tuple[list[float], Click | None]:
        ious = [round(mask_iou(mask, ground_truth, self.ignore), 6) for mask in masks]
        if self.rules.enough is not None and ious[0] >= self.rules.enough:
            return ious, None
        return ious, next_click(ground_truth, masks[0], clicked, self.ignore)


def simulate_images(
    segmenter: Segmenter, examples: Sequence[Example], rules: ClickRules, workers: int = 2
) -> Iterator[SimulationResult]:
    """`simulate_clicks` of each, in order, several at a time; an image that can't be used is told of and left out.

    Threads do: OpenCV, NumPy and JAX compute outside the GIL, so that the device works for one image while the host
    judges the masks of another (benchmarks/click_workers.py has the times, also of processes).
    """

    def attempt(example: Example) -> SimulationResult:
        try:
            return simulate_clicks(segmenter, example, rules, judges.map)
        except ValueError as error:
            return SimulationResult([], [str(error)], complete=False)

    pool, judges = ThreadPoolExecutor(max(1, workers)), ThreadPoolExecutor(max(1, workers))
    try:
        yield from pool.map(attempt, examples)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends after the images in work, not after all
        judges.shutdown()
