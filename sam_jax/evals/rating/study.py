"""Which masks are rated, and the ratings so far, as files of one folder.

`study.json` holds the jobs in the order in which they are shown; `ratings.jsonl` gets a line with every rating.

Reference: paper, section D.5 (data, ratings); one rating per mask, each object's masks from every source.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.data.examples import check_rle, read_json
from sam_jax.errors import MissingFile, UserError
from sam_jax.evals.ground_truth import GroundTruth, GroundTruthImage, shorten
from sam_jax.evals.result_files import read_results
from sam_jax.files import write_atomically
from sam_jax.ops.rle import Rle, rle_area

LOWEST_RATING, HIGHEST_RATING = 1, 10
MIN_AREA = 24 * 24  # pixels; smaller masks are not rated
CLAIM_SECONDS = 15 * 60  # seconds that a mask waits for the rating of whom it was shown to


@dataclasses.dataclass(frozen=True)
class RatingJob:
    """One mask to rate."""

    picture: str  # path
    segmentation: Rle
    box: tuple[float, ...] | None  # what the mask was asked for with, (x, y, w, h) ...
    point: tuple[float, ...] | None  # ... or (x, y)
    object: int  # jobs of one number show one object, from several sources
    source: str  # not shown


@dataclasses.dataclass(frozen=True)
class Rating:
    job: int
    rating: int
    seconds: float | None = None  # that it took
    rater: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.job, bool) or not isinstance(self.job, int):
            raise UserError(f"expected the number of a job, got {self.job!r}")
        if (
            isinstance(self.rating, bool)
            or not isinstance(self.rating, int)
            or not LOWEST_RATING <= self.rating <= HIGHEST_RATING
        ):
            raise UserError(
                f"expected a rating of {LOWEST_RATING} to {HIGHEST_RATING}, a whole number, got {self.rating!r}"
            )
        if self.seconds is not None and not (
            isinstance(self.seconds, int | float) and math.isfinite(self.seconds) and self.seconds >= 0
        ):
            raise UserError(f"expected seconds of at least 0, got {self.seconds!r}")
        if self.rater is not None and not isinstance(self.rater, str):
            raise UserError(f"expected the name of a rater, got {self.rater!r}")


@dataclasses.dataclass(frozen=True)
class _Claim:
    rater: str
    time: float  # monotonic, seconds


class Study:
    """Jobs and ratings of a folder. Several people may rate at once, each mask one of them.

    Raises:
        FileNotFoundError, ValueError: no study there, or one that can't be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "study.json"
        if not path.is_file():
            raise MissingFile(f"expected a study at {path}, found none; make one with sam-jax rate sample")
        content = read_json(path.read_bytes(), path)
        try:
            self.jobs = [RatingJob(**job) for job in content["jobs"]]
            self.sources: list[str] = list(content["sources"])
        except (KeyError, TypeError) as error:
            raise UserError(f"expected jobs and sources in {path}: {type(error).__name__} {error}") from error
        self._file = folder / "ratings.jsonl"
        self._lock = threading.Lock()
        self._shown: dict[int, _Claim] = {}  # jobs without a rating
        self.ratings = self._read()

    def check_images(self) -> None:
        """
        Raises:
            ValueError: an image can't be read or has another size than its mask: nobody could rate it.
        """
        for job in {job.picture: job for job in self.jobs}.values():
            try:
                with Image.open(job.picture) as image:
                    size = sorted(image.size)  # EXIF may turn it
            except OSError as error:
                raise UserError(f"expected an image at {job.picture}: {error}") from error
            if size != sorted(job.segmentation["size"]):
                raise UserError(
                    f"expected {job.picture} to have its mask's size {job.segmentation['size']}, got {size}"
                )

    def _read(self) -> dict[int, Rating]:
        lines = self._file.read_text().split("\n") if self._file.exists() else [""]
        if lines[-1]:  # the process was ended within a line
            write_atomically(self._file, "".join(f"{line}\n" for line in lines[:-1]))
        ratings = {}
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rating = self._parse(json.loads(line))
            except ValueError as error:
                raise UserError(f"line {number} of {self._file} is no rating: {error}") from error
            ratings[rating.job] = rating  # a job that was rated again has its last rating
        return ratings

    def _parse(self, content: Any) -> Rating:
        known = {field.name for field in dataclasses.fields(Rating)}
        if not isinstance(content, dict) or not {"job", "rating"} <= content.keys() <= known:
            raise UserError(f"expected an object with some of {sorted(known)}, got {str(content)[:80]}")
        rating = Rating(**content)
        self._check(rating)
        return rating

    def _check(self, rating: Rating) -> None:
        if not 0 <= rating.job < len(self.jobs):
            raise UserError(f"expected a job of 0 to {len(self.jobs) - 1}, got {rating.job}")

    def rate(self, rating: Rating) -> None:
        """Keeps a rating on disk before it returns. Whoever rates a mask again replaces the own rating.

        Raises:
            ValueError: no such job, or another person has rated it.
        """
        self._check(rating)
        with self._lock:
            given = self.ratings.get(rating.job)
            if given is not None and given.rater != rating.rater:
                raise UserError(f"mask {rating.job + 1} has been rated by somebody else meanwhile")
            with self._file.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(rating)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.ratings[rating.job] = rating
            self._shown.pop(rating.job, None)

    def claim(self, rater: str) -> int | None:
        """The job for somebody to rate: the one shown already, or else the first that nobody has rated or looks at.

        Others get it after HELD seconds, or once the process was started anew. None: no job is left.
        """
        with self._lock:
            now = time.monotonic()
            held = {job: shown for job, shown in self._shown.items() if now - shown.time < CLAIM_SECONDS}
            job = next((job for job, shown in held.items() if shown.rater == rater), None)
            if job is None:
                job = next((i for i in range(len(self.jobs)) if i not in self.ratings and i not in held), None)
            if job is not None:
                held[job] = _Claim(rater, now)
            self._shown = held
            return job

    def previous(self, rater: str, job: int | None) -> int | None:
        """What somebody has rated before a job, in the order of the study; None asks for the last."""
        end = len(self.jobs) if job is None else job
        return next((i for i in range(end - 1, -1, -1) if i in self.ratings and self.ratings[i].rater == rater), None)


def sample_study(
    ground_truth: GroundTruth, sources: Mapping[str, Path], masks: int, seed: int, min_area: int = MIN_AREA
) -> dict[str, Any]:
    """Draws objects that all sources have a mask of, and shuffles their masks.

    Masks are of one object if image, category and prompt are the same: `prompt_bbox` or else `bbox`, or
    `point_coords`. A detector's results and those of a model that was asked with its boxes go together, and so do the
    annotations.

    Args:
        ground_truth: the images.
        sources: name -> file in COCO's result format; the file of `ground_truth` stands for the annotated masks.
        masks: of each source; fewer if there are fewer.
        min_area: pixels; an object whose largest mask has fewer is not drawn.

    Returns:
        What goes to `study.json`. A function of the arguments alone.

    Raises:
        ValueError: fewer than two sources, no object in common, or a file that can't be used.
        FileNotFoundError: no such file.
    """
    if len(sources) < 2:
        raise UserError(f"expected at least two sources to compare, got {', '.join(sources) or 'none'}")
    if masks < 1:
        raise UserError(f"expected at least one mask, got {masks}")
    found = {name: _read_source(ground_truth, path) for name, path in sources.items()}
    common = set.intersection(*(set(rows) for rows in found.values()))
    large = [key for key in sorted(common) if max(rle_area(rows[key]) for rows in found.values()) >= min_area]
    if not large:
        counts = shorten(f"{name}: {len(rows)}" for name, rows in found.items())
        raise UserError(
            f"expected objects of at least {min_area} pixels that all sources have a mask of, got none among {counts}, "
            f"of which {len(common)} in common; their results must be for the same boxes or points"
        )
    rng = np.random.default_rng(seed)
    drawn = [large[i] for i in rng.permutation(len(large))[:masks]]
    jobs = [
        dataclasses.asdict(
            RatingJob(
                str(ground_truth.images[key[0]].path.resolve()),
                rows[key],
                key[3] if key[2] == "box" else None,
                key[3] if key[2] == "point" else None,
                number,
                name,
            )
        )
        for number, key in enumerate(drawn)
        for name, rows in found.items()
    ]
    return {"sources": list(sources), "seed": seed, "jobs": [jobs[i] for i in rng.permutation(len(jobs))]}


def write_study(folder: Path, study: Mapping[str, Any]) -> None:
    """Makes a study's folder.

    Raises:
        ValueError: there are ratings of another study.
    """
    path, content = folder / "study.json", json.dumps(study)
    if path.exists() and path.read_text() != content and (folder / "ratings.jsonl").exists():
        raise UserError(f"{folder} holds another study with ratings; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _read_source(ground_truth: GroundTruth, file: Path) -> dict[tuple, Rle]:
    """(image, category, kind of prompt, prompt) -> mask; of several the best."""
    rows: list[tuple[GroundTruthImage, dict]]
    if file.resolve() == ground_truth.file.resolve():
        rows = [(p, o) for p in ground_truth.images.values() for o in p.objects() if not o["iscrowd"]]
    else:
        results = read_results(file, ground_truth, "segmentation")
        rows = [(ground_truth.images[id_], result) for id_, of_image in results.items() for result in of_image]
    masks: dict[tuple, Rle] = {}
    for image, row in rows:
        check_rle(row["segmentation"], image.size, f"{file}, {image.name}")
        masks.setdefault((image.id, row["category_id"], *_prompt(row, file)), row["segmentation"])
    return masks


def _prompt(row: Mapping[str, Any], file: Path) -> tuple[str, tuple[float, ...]]:
    try:
        if "point_coords" in row:
            x, y = row["point_coords"][0]
            return "point", (round(float(x), 1), round(float(y), 1))
        x, y, w, h = row["prompt_bbox"] if "prompt_bbox" in row else row["bbox"]
        return "box", tuple(round(float(number), 1) for number in (x, y, w, h))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"expected prompt_bbox or bbox (x, y, w, h), or point_coords [[x, y]], in each result of {file}, "
            f"got {sorted(row)}"
        ) from error
