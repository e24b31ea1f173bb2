"""Instances of COCO-format files: polygons, compressed and plain run lengths."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask

from sam_jax.data.examples import Example, check_rle, read_json
from sam_jax.errors import BadRecord, MissingFile, UserError
from sam_jax.ops.rle import Rle, rle_from_counts

# Files of the COCO release that hold no instances.
OTHER_KINDS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")


class CocoSource:
    """The annotated images of one file, in its order. `iscrowd` annotations are left out.

    Kept as JSON text per image: half a million polygons as Python numbers would take gigabytes.

    Args:
        image_folder: to which the file's `file_name`s are relative; None: see `find_image_folder`.
        keep_image: says which entries of `images` to take.
        min_area: pixels; smaller masks are left out.
        file_name: an entry of `images` -> the image's path in the folder.

    Raises:
        FileNotFoundError, ValueError: no such file; not COCO-format JSON, or ids that occur twice; no images.
    """

    def __init__(
        self,
        annotation_file: Path,
        image_folder: Path | None,
        dataset: str,
        *,
        keep_image: Callable[[dict], bool] = lambda image: True,
        min_area: int = 1,
        file_name: Callable[[dict], str] = lambda image: image["file_name"],
    ) -> None:
        self.file, self.dataset, self.min_area = annotation_file, dataset, min_area
        content = read_json(annotation_file.read_bytes(), annotation_file)
        for field in ("images", "annotations"):
            if not isinstance(content, dict) or not isinstance(content.get(field), list):
                raise UserError(f"expected COCO-format JSON with a list {field!r} in {annotation_file}")
        try:
            check_unique((image["id"] for image in content["images"]), "ids of images", annotation_file)
            segmentations: dict[Any, list] = {image["id"]: [] for image in content["images"] if keep_image(image)}
            for annotation in content["annotations"]:
                if annotation["image_id"] in segmentations and not annotation.get("iscrowd"):
                    segmentations[annotation["image_id"]].append(annotation.get("segmentation"))
            self._records = [
                json.dumps((file_name(image), image.get("height"), image.get("width"), segmentations[image["id"]]))
                for image in content["images"]
                if segmentations.get(image["id"])
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"expected COCO-format JSON in {annotation_file}: images with id and file_name, annotations with "
                f"image_id; got {type(error).__name__} {error}"
            ) from error
        names = [json.loads(record)[0] for record in self._records[:8]]
        self.folder = find_image_folder(annotation_file, names, image_folder)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        file_name, height, width, segmentations = json.loads(self._records[index])
        path = self.folder / file_name
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise BadRecord("image without a size", self.file, f"{file_name}: height {height}, width {width}")
        masks = []
        for segmentation in segmentations:
            rle = to_rle(segmentation, (height, width), f"{self.file}: {file_name}")
            if check_rle(rle, (height, width), f"{self.file}: {file_name}") >= self.min_area:
                masks.append(rle)
        if not masks:
            raise BadRecord("no masks", path)
        return Example(path, (height, width), tuple(masks), self.dataset)


def check_unique(ids: Iterable[Any], what: str, annotation_file: Path) -> None:
    """
    Raises:
        ValueError: ids that occur more than once.
    """
    twice = [id_ for id_, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(
            f"expected different {what} in {annotation_file}, got {len(twice)} more than once, "
            f"such as {', '.join(map(repr, twice[:5]))}"
        )


def read_coco(
    annotation_file: Path,
    image_folder: Path | None,
    dataset: str,
    *,
    keep_image: Callable[[dict], bool] = lambda image: True,
    min_area: int = 1,
) -> list[Example]:
    """All of a `CocoSource`, but for images that are left without a mask.

    Raises:
        FileNotFoundError, ValueError: no such file; not COCO-format JSON; masks that cannot be read.
    """
    source = CocoSource(annotation_file, image_folder, dataset, keep_image=keep_image, min_area=min_area)
    examples = []
    for i in range(len(source)):
        try:
            examples.append(source[i])
        except BadRecord as error:
            if error.reason != "no masks":
                raise
    return examples


def to_rle(segmentation: Any, size: tuple[int, int], where: str) -> Rle:
    """COCO's polygons or either of its forms of run lengths -> compressed run lengths.

    Those that are compressed already are not looked at; `check_rle` does.

    Args:
        size: (h, w) of the image.

    Raises:
        BadRecord: none of these.
    """
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), list):
            return segmentation
        check_rle(segmentation, size, where)  # pycocotools would trust it
        rle = pycocotools.mask.frPyObjects(segmentation, *size)
    else:  # polygons, x and y in turn
        try:
            polygons = [np.asarray(polygon, np.float64) for polygon in segmentation if len(polygon) >= 6]
        except (TypeError, ValueError) as error:
            raise BadRecord("segmentation cannot be read", where, f"{str(segmentation)[:60]}; {error}") from error
        if any(p.ndim != 1 or len(p) % 2 or not np.isfinite(p).all() for p in polygons):
            raise BadRecord("segmentation cannot be read", where, f"polygons {str(segmentation)[:60]}")
        if not polygons:
            return rle_from_counts(np.array([size[0] * size[1]]), size)
        # Far outside the image lie mistakes; pycocotools would draw their outline pixel by pixel.
        limit = np.array([size[1], size[0]], np.float64)
        inside = [np.clip(p.reshape(-1, 2), -limit, 2 * limit).reshape(-1).tolist() for p in polygons]
        rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(inside, *size))
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def find_coco_files(folder: Path) -> dict[str, list[Path]]:
    """The instance files of a COCO-style folder: {"train": [...], "validation": [...]}, by their names.

    Looked for: annotations.json, instances*.json, annotations/instances*.json or else all of annotations/*.json, and
    _annotations.coco.json here and one folder down (the folder's name then says which part). Test parts are left out.
    """
    found: list[Path] = []
    for patterns in (
        ("annotations.json", "instances*.json", "annotations/instances*.json"),
        ("annotations/*.json",),
        ("_annotations.coco.json", "*/_annotations.coco.json"),
    ):
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        found = [path for path in found if not path.name.startswith(OTHER_KINDS)]
        if found:
            break
    parts: dict[str, list[Path]] = {"train": [], "validation": []}
    for path in found:
        label = path.parent.name if path.name.startswith("_") and path.parent != folder else path.stem
        words = re.split(r"[^a-z]+", label.lower())
        if any(word.startswith("val") for word in words):
            parts["validation"].append(path)
        elif "test" not in words:
            parts["train"].append(path)
    return parts


def find_image_folder(annotation_file: Path, names: Sequence[str], given: Path | None) -> Path:
    """The folder that holds most of the named images: `given`, or one of the usual ones near the annotation file."""
    here = annotation_file.parent
    part = annotation_file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
    near = [root / name for root in (here, here.parent) for name in ("", "images", part, f"images/{part}")]
    folders = near if given is None else [given]
    best = max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))
    if names and not any((best / name).is_file() for name in names):
        looked = ", ".join(str(folder) for folder in folders)
        raise MissingFile(
            f"the images of {annotation_file} ({names[0]}, ...) are not in {looked}; "
            "say where they are with --data.images (sam-jax prepare: --images)"
        )
    return best
