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
from sam_jax.evals.records import Record
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
class Played:
    """One image's results."""

    records: list[Record]
    problems: list[str]  # what could not be used: a mask, or all of the image
    complete: bool = True  # False: the image itself can't be used; another run tries again


def play_image(segmenter: Segmenter, example: Example, rules: ClickRules, run: Callable[..., Iterator] = map) -> Played:
    """Plays on every mask of an image.

    Args:
        run: as `map`; that of an executor judges masks side by side.

    Raises:
        ValueError: the image can't be read, or a predicted mask has another size than the image.
    """
    truths = [decode_rle(mask) for mask in example.masks]
    ignore = None if example.ignore is None else decode_rle(example.ignore)
    user = _User(rules, ignore, zlib.crc32(example.name.encode()))
    starts = list(run(user.start, truths, range(len(truths))))
    problems = [f"mask {i} has no pixel to click" for i, start in enumerate(starts) if start is None]
    numbers = [i for i, start in enumerate(starts) if start is not None]
    given = [Clicks([start[0]], [start[1]]) for start in starts if start is not None]
    records: list[Record] = [{"mask": i, "area": int(truths[i].sum()), "iou": []} for i in numbers]
    if not records:
        return Played(records, problems)
    session = segmenter.open(example.image())
    finished: set[int] = set()  # without an error left, or good enough: the user clicks no more and keeps what there is
    for turn in range(rules.clicks):
        playing = [i for i in range(len(records)) if i not in finished]
        if not playing:
            break
        answers = session.segment(given)
        judged = run(
            user.judge,
            [truths[numbers[i]] for i in playing],
            [answers[i].masks if turn == 0 else answers[i].masks[:1] for i in playing],
            [given[i].points for i in playing],
        )
        for i, (overlaps, following) in zip(playing, judged, strict=True):
            records[i]["iou"].append(overlaps[0])
            if turn == 0:
                records[i]["best"] = max(overlaps)
            if following is None:
                finished.add(i)
            elif turn < rules.clicks - 1:
                given[i].points.append(following[0])
                given[i].labels.append(following[1])
    for record in records:
        record["iou"] += record["iou"][-1:] * (rules.clicks - len(record["iou"]))
    return Played(records, problems)


@dataclasses.dataclass(frozen=True)
class _User:
    rules: ClickRules
    ignore: Bool[np.ndarray, "H W"] | None
    number: int  # of the image, for its random numbers

    def start(self, truth: Bool[np.ndarray, "H W"], mask: int) -> Click | None:
        try:
            if self.rules.first == "random":
                return random_click(truth, np.random.default_rng([self.rules.seed, self.number, mask]), self.ignore)
            return first_click(truth, self.ignore)
        except ValueError:
            return None

    def judge(
        self, truth: Bool[np.ndarray, "H W"], masks: Bool[np.ndarray, "M H W"], clicked: list[tuple[int, int]]
    ) -> tuple[list[float], Click | None]:
        overlaps = [round(mask_iou(mask, truth, self.ignore), 6) for mask in masks]
        if self.rules.enough is not None and overlaps[0] >= self.rules.enough:
            return overlaps, None
        return overlaps, next_click(truth, masks[0], clicked, self.ignore)


def play_images(
    segmenter: Segmenter, examples: Sequence[Example], rules: ClickRules, workers: int = 2
) -> Iterator[Played]:
    """`play_image` of each, in order, several at a time; an image that can't be used is told of and left out.

    Threads do: OpenCV, NumPy and JAX compute outside the GIL, so that the device works for one image while the host
    judges the masks of another (benchmarks/click_workers.py has the times, also of processes).
    """

    def attempt(example: Example) -> Played:
        try:
            return play_image(segmenter, example, rules, judges.map)
        except ValueError as error:
            return Played([], [str(error)], complete=False)

    pool, judges = ThreadPoolExecutor(max(1, workers)), ThreadPoolExecutor(max(1, workers))
    try:
        yield from pool.map(attempt, examples)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends after the images in work, not after all
        judges.shutdown()
