"""A rating study: the masks to rate and their ratings, as files in one folder.

`study.json` holds the jobs (a mask each) in the order in which they are shown; each rating appends a line to
`ratings.jsonl`.

Reference: paper, section D.5 (data, ratings). Each mask gets one rating; each object has a mask from every source.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.data.examples import check_rle
from sam_jax.errors import MissingFile, UserError
from sam_jax.evals.ground_truth import GroundTruth, GroundTruthImage, shorten
from sam_jax.evals.result_files import read_results
from sam_jax.files import append_line, make_folder, read_json, read_text, write_atomically
from sam_jax.ops.rle import Rle, rle_area

LOWEST_RATING, HIGHEST_RATING = 1, 10
MIN_AREA = 24 * 24  # smallest object in pixels
CLAIM_SECONDS = 15 * 60  # seconds for which a mask is reserved for the rater it is shown to


@dataclasses.dataclass(frozen=True)
class RatingJob:
    """One mask to rate."""

    picture: str  # path of the image
    segmentation: Rle
    box: tuple[float, ...] | None  # box prompt of the mask, (x, y, w, h) ...
    point: tuple[float, ...] | None  # ... or point prompt, (x, y)
    object: int  # the same number for all masks of an object
    source: str  # what predicted the mask; not shown to raters


@dataclasses.dataclass(frozen=True)
class Rating:
    """The rating of one mask."""

    job: int  # index of the job
    rating: int  # LOWEST_RATING to HIGHEST_RATING
    seconds: float | None = None  # time that the rating took
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
    """A job that is reserved for the rater it is shown to."""

    rater: str
    time: float  # monotonic clock, in seconds


class Study:
    """The jobs and ratings in a folder. Several people may rate at once; each mask is rated by one of them.

    Raises:
        MissingFile: the folder has no study.
        UserError: the study cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "study.json"
        if not path.is_file():
            raise MissingFile(f"expected a study at {path}, found none; make one with sam-jax rate sample")
        content = read_json(path)
        try:
            self.jobs = [RatingJob(**job) for job in content["jobs"]]
            self.sources: list[str] = list(content["sources"])
        except (KeyError, TypeError) as error:
            raise UserError(f"expected jobs and sources in {path}: {type(error).__name__} {error}") from error
        self._file = folder / "ratings.jsonl"
        self._lock = threading.Lock()
        self._claims: dict[int, _Claim] = {}  # by job, until it is rated
        self.ratings = self._read()

    def check_images(self) -> None:
        """Checks that every image can be shown.

        Raises:
            UserError: an image cannot be read or has another size than its mask.
        """
        for job in {job.picture: job for job in self.jobs}.values():
            try:
                with Image.open(job.picture) as image:
                    size = sorted(image.size)  # EXIF may rotate it
            except Exception as error:  # Pillow's decoders raise nearly anything
                raise UserError(f"expected an image at {job.picture}: {error}") from error
            if size != sorted(job.segmentation["size"]):
                raise UserError(
                    f"expected {job.picture} to have its mask's size {job.segmentation['size']}, got {size}"
                )

    def _read(self) -> dict[int, Rating]:
        lines = read_text(self._file).split("\n") if self._file.exists() else [""]
        if lines[-1]:  # the process ended while it wrote the line
            write_atomically(self._file, "".join(f"{line}\n" for line in lines[:-1]))
        ratings = {}
        for number, line in enumerate(lines[:-1], start=1):
            try:
                rating = self._parse(json.loads(line))
            except (json.JSONDecodeError, UserError) as error:
                raise UserError(f"line {number} of {self._file} is no rating: {error}") from error
            ratings[rating.job] = rating  # the last rating of a job counts
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
        """Saves a rating; it is on disk when this returns. A rater who rates a mask again replaces the first rating.

        Raises:
            UserError: the job does not exist, or somebody else has rated it.
        """
        self._check(rating)
        with self._lock:
            given = self.ratings.get(rating.job)
            if given is not None and given.rater != rating.rater:
                raise UserError(f"mask {rating.job + 1} has been rated by somebody else meanwhile")
            append_line(self._file, json.dumps(dataclasses.asdict(rating)), sync=True)
            self.ratings[rating.job] = rating
            self._claims.pop(rating.job, None)

    def claim(self, rater: str) -> int | None:
        """Reserves a job for a rater: the one reserved already, else the first that is neither rated nor reserved.

        A reservation ends after CLAIM_SECONDS, or when the server restarts.

        Returns:
            The index of the job; None if no job is left.
        """
        with self._lock:
            now = time.monotonic()
            held = {job: claim for job, claim in self._claims.items() if now - claim.time < CLAIM_SECONDS}
            job = next((job for job, claim in held.items() if claim.rater == rater), None)
            if job is None:
                job = next((i for i in range(len(self.jobs)) if i not in self.ratings and i not in held), None)
            if job is not None:
                held[job] = _Claim(rater, now)
            self._claims = held
            return job

    def previous(self, rater: str, job: int | None) -> int | None:
        """Returns the last job before `job` that this person has rated; with None, the last of the study."""
        end = len(self.jobs) if job is None else job
        return next((i for i in range(end - 1, -1, -1) if i in self.ratings and self.ratings[i].rater == rater), None)


def sample_study(
    ground_truth: GroundTruth, sources: Mapping[str, Path], masks: int, seed: int, min_area: int = MIN_AREA
) -> dict[str, Any]:
    """Draws random objects of which every source has a mask, and shuffles their masks.

    Masks belong to the same object if image, category and prompt are equal. The prompt is `prompt_bbox` (else `bbox`)
    or `point_coords`, so that a detector's masks, those of a model prompted with its boxes, and annotations match.

    Args:
        ground_truth: the images.
        sources: file in COCO's result format for each source; the file of `ground_truth` gives the annotated masks.
        masks: number of masks of each source; fewer if there are fewer.
        min_area: smallest area in pixels of an object's largest mask.

    Returns:
        The content of `study.json`. The same arguments give the same study.

    Raises:
        UserError: there are fewer than two sources or no object in common, or a file cannot be used.
        MissingFile: a file does not exist.
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
    """Writes a study to its folder.

    Raises:
        UserError: the folder has ratings of another study.
    """
    path, content = folder / "study.json", json.dumps(study)
    if path.exists() and read_text(path) != content and (folder / "ratings.jsonl").exists():
        raise UserError(f"{folder} holds another study with ratings; choose another folder")
    make_folder(folder)
    write_atomically(path, content)


def _read_source(ground_truth: GroundTruth, file: Path) -> dict[tuple, Rle]:
    """Reads the best mask for each image, category, kind of prompt and prompt."""
    rows: list[tuple[GroundTruthImage, dict]]
    if file.resolve() == ground_truth.file.resolve():
        rows = [
            (gt_image, object_)
            for gt_image in ground_truth.images.values()
            for object_ in gt_image.objects()
            if not object_["iscrowd"]
        ]
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
