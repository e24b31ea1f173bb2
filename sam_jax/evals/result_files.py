"""Results on disk: one JSON file per image during an evaluation, and COCO's result format for exchange."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sam_jax.data.examples import check_rle
from sam_jax.errors import MissingFile, UserError
from sam_jax.evals.ground_truth import ANY_CATEGORY, GroundTruth, GroundTruthImage, shorten
from sam_jax.evals.mask_scores import Result
from sam_jax.files import make_folder, open_to_write, read_json, replacing, write_atomically
from sam_jax.progress import ProgressBar


class ResultFolder:
    """A folder with the results of one method, a JSON file IMAGE_ID.json per image. Files are always complete.

    Args:
        parent: the parent folder, in which the folder is called NAME-HASH.
        identity: everything the results depend on; another identity has another folder.
    """

    def __init__(self, parent: Path, name: str, identity: str) -> None:
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        self.path = parent / f"{name.replace(' ', '_')}-{digest}"
        make_folder(self.path)

    def file(self, image: GroundTruthImage) -> Path:
        """Returns the path of the results of an image."""
        return self.path / f"{image.id}.json"

    def missing(self, images: Iterable[GroundTruthImage]) -> list[GroundTruthImage]:
        """Returns the images without results."""
        return [image for image in images if not self.file(image).exists()]

    def write(self, image: GroundTruthImage, results: list[Result]) -> None:
        write_atomically(self.file(image), json.dumps(results))

    def read(self, image: GroundTruthImage) -> list[Result]:
        return read_image_results(self.file(image))

    def merge(self, images: Iterable[GroundTruthImage]) -> Path:
        """Merges the results of the images into one file in COCO's result format, beside the folder."""
        path = self.path.with_suffix(".results.json")
        with replacing(path) as temporary, open_to_write(temporary) as file:
            file.write("[")
            before = ""
            for image in images:
                for result in self.read(image):
                    file.write(f"{before}\n{json.dumps({'image_id': image.id} | result)}")
                    before = ","
            file.write("\n]\n")
        return path


def read_image_results(file: Path) -> list[Result]:
    """Reads one file of a `ResultFolder`."""
    return read_json(file)


def read_results(file: Path, ground_truth: GroundTruth, field: str) -> dict[int, list[Result]]:
    """Reads a file in COCO's result format, as detectors write it.

    The categories of the results are ignored if `ground_truth` is class-agnostic.

    Args:
        field: what every result must have, `segmentation` or `bbox`. Boxes without area, which detectors do produce,
            are left out with a message.

    Returns:
        The results of each image of `ground_truth` by image id, best first; an empty list if the file has none.

    Raises:
        MissingFile: the file does not exist.
        UserError: it is not such a file, or has results of other images or categories; the message names them.
    """
    if not file.is_file():
        raise MissingFile(f"expected a file of results at {file.resolve()}, found none")
    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(result, dict) for result in content):
        raise UserError(f"expected COCO's result format in {file}: a JSON list of objects, got {str(content)[:60]}")
    if ANY_CATEGORY in ground_truth.categories:
        content = [result | {"category_id": ANY_CATEGORY} for result in content]
    fields = {"image_id", "category_id", "score", field}
    for i, result in enumerate(content):
        if not fields <= result.keys():
            raise UserError(f"expected {', '.join(sorted(fields))} in each result of {file}, number {i} has not all")
        for key in ("image_id", "category_id"):
            if not isinstance(result[key], int | str):
                raise UserError(f"expected {key} of result {i} of {file} to be a number or a text, got {result[key]}")
    for key, known in (("image_id", ground_truth.images), ("category_id", ground_truth.categories)):
        unknown = dict.fromkeys(result[key] for result in content if result[key] not in known)
        if unknown:
            raise UserError(
                f"{file} has results of another dataset: {key} {shorten(unknown)} not in {ground_truth.file} with "
                f"{len(known)} of them"
            )
    results: dict[int, list[Result]] = {id_: [] for id_ in ground_truth.images}
    without_area = 0
    for i, result in enumerate(content):
        where = f"result {i} of {file} (image {result['image_id']})"
        if not _finite(result["score"]):
            raise UserError(f"expected a number as score, got {result['score']!r} for {where}")
        if field == "segmentation":
            check_rle(result["segmentation"], ground_truth.images[result["image_id"]].size, where)
        elif not (isinstance(result["bbox"], list) and len(result["bbox"]) == 4 and all(map(_finite, result["bbox"]))):
            raise UserError(f"expected bbox (x, y, w, h), four numbers, got {result['bbox']!r} for {where}")
        elif min(result["bbox"][2:]) <= 0:
            without_area += 1
            continue
        results[result["image_id"]].append(result)
    if without_area:
        ProgressBar.write(f"{file}: {without_area} of {len(content)} boxes have no area and are left out")
    return {id_: sorted(rows, key=lambda result: -result["score"]) for id_, rows in results.items()}


def check_mask_sizes(results: Iterable[Result], image: GroundTruthImage) -> None:
    """Checks that masks have the size of their image.

    Raises:
        UserError: a mask has another size.
    """
    sizes = Counter(tuple(result["segmentation"]["size"]) for result in results)
    sizes.pop(image.size, None)
    if sizes:
        raise UserError(f"expected masks of the image's size {image.size} (h, w), got {dict(sizes)}")


def _finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
