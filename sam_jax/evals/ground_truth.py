"""Ground truth of COCO and LVIS annotation files: images, their annotated objects, and categories.

Reference: Lin et al. 2014 (COCO); Gupta et al. 2019 (LVIS), a federated dataset: each image is annotated for some
categories only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sam_jax.data.bad_records import count_reasons
from sam_jax.data.coco import (
    NAME,
    Entry,
    image_name,
    is_box,
    is_key,
    locate_image,
    read_coco_file,
    refuse_repeated_ids,
    sound_masks,
    tell_problems,
)
from sam_jax.data.examples import Example
from sam_jax.data.segmentations import is_image_size, read_mask
from sam_jax.errors import BadRecord, UserError
from sam_jax.ops.rle import coco_bbox

AnnotatedObject = dict[str, Any]
"""One object of an image: `id`, `category_id`, `segmentation` (RLE), `bbox` (x, y, w, h), `area`, `iscrowd`."""

ANY_CATEGORY = -1  # the single category of class-agnostic evaluation
FIELDS = {
    "images": ("id", NAME, "height", "width"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id",),
}
FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}


@dataclasses.dataclass(frozen=True)
class GroundTruthImage:
    """One image and its annotations, those of which the masks can be read.

    They are as in the file, but for an `id` or a `bbox` that is not there or none: the number of the annotation in the
    file, and the mask's box.
    """

    id: int
    path: Path
    size: tuple[int, int]  # (h, w)
    annotations: tuple[dict[str, Any], ...]
    negative_categories: frozenset[int] = frozenset()  # LVIS: categories verified to be absent
    not_exhaustive_categories: frozenset[int] = frozenset()  # LVIS: categories not annotated exhaustively

    @property
    def name(self) -> str:
        """The name of the image in messages."""
        return f"image {self.id} ({self.path.name})"

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """Reads the image as RGB.

        Raises:
            BadRecord: it is missing, cannot be decoded, or has another size than the annotation file says.
        """
        return Example(self.path, self.size, (), "").image()

    def objects(self) -> list[AnnotatedObject]:
        """Returns the annotated objects, with masks as RLE.

        Raises:
            BadRecord: a mask cannot be read or has another size than the image.
        """
        objects = []
        for annotation in self.annotations:
            where = f"{self.name}, annotation {annotation['id']}"
            rle, area = read_mask(annotation.get("segmentation"), self.size, where)
            objects.append(
                {
                    "id": annotation["id"],
                    "category_id": annotation["category_id"],
                    "segmentation": rle,
                    "bbox": annotation["bbox"],
                    "area": area if annotation.get("area") is None else annotation["area"],
                    "iscrowd": int(annotation.get("iscrowd") or 0),
                }
            )
        return objects


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The annotations of a dataset, with which results are compared."""

    file: Path
    images: dict[int, GroundTruthImage]  # by image id, in ascending order
    categories: dict[int, str]  # name of each category id
    frequencies: dict[int, str]  # LVIS: f, c or r for each category id; empty for COCO
    problems: tuple[BadRecord, ...] = ()  # entries of the file that are left out

    @property
    def federated(self) -> bool:
        """Whether each image is annotated for some categories only, as in LVIS."""
        return bool(self.frequencies)

    def take(self, count: int) -> GroundTruth:
        """Returns the ground truth of the first `count` images; 0 means all."""
        return dataclasses.replace(self, images=dict(list(self.images.items())[: count or None]))

    def as_class_agnostic(self) -> GroundTruth:
        """Puts all objects into one category, ANY_CATEGORY, for results of class-agnostic detectors.

        Raises:
            UserError: the dataset is federated (LVIS): most objects of its images are not annotated.
        """
        if self.federated:
            raise UserError(f"expected images on which everything is annotated, {self.file} has LVIS's categories")
        gt_images = {
            id_: dataclasses.replace(
                gt_image, annotations=tuple(a | {"category_id": ANY_CATEGORY} for a in gt_image.annotations)
            )
            for id_, gt_image in self.images.items()
        }
        return dataclasses.replace(self, images=gt_images, categories={ANY_CATEGORY: "anything"})


def read_ground_truth(file: Path, images: Path | None = None) -> GroundTruth:
    """Reads a COCO or LVIS annotation file. LVIS is recognised by the `frequency` of its categories.

    Args:
        images: folder of the images; None means that they are looked for near the file.

    Raises:
        MissingFile: the file does not exist.
        UserError: it is not a COCO or LVIS file, ids are duplicate, or there are no objects that can be used; the
            message says what is left out.
    """
    content = read_coco_file(file, FIELDS)
    for kind in (content.images, content.categories):
        if texts := [entry["id"] for entry in kind if isinstance(entry["id"], str)]:
            raise UserError(f"expected numbers as ids of images and categories in {file}, got {shorten(texts)}")
    folder = content.image_folder(images, required=False)
    categories = {int(e["id"]): str(e.get("name", e["id"])) for e in content.categories}
    frequencies = {e["id"]: str(e["frequency"]) for e in content.categories if "frequency" in e}
    for number, annotation in enumerate(content.annotations):
        if not is_key(annotation.get("id")):
            annotation["id"] = f"number {number}"
    refuse_repeated_ids((annotation["id"] for annotation in content.annotations), "annotations", file)
    annotations = content.annotations_by_image()
    entries = {e["id"]: e for e in content.images}
    gt_images, problems = {}, list(content.problems)
    for id_ in sorted(entries):
        try:
            gt_images[id_], bad = _image(entries[id_], annotations[id_], folder, file)
            problems += bad
        except BadRecord as error:
            problems.append(error)
    tell_problems(problems[len(content.problems) :], file)
    if frequencies and (len(frequencies) < len(categories) or not set(frequencies.values()) <= set(FREQUENCIES)):
        raise UserError(f"expected a frequency (f, c or r) for each of {len(categories)} categories in {file}")
    if not any(gt_image.annotations for gt_image in gt_images.values()):
        left_out = "".join(f"; left out: {line}" for line in count_reasons(problems))
        raise UserError(f"expected annotated objects in {file}, got none on {len(gt_images)} images{left_out}")
    return GroundTruth(file, gt_images, categories, frequencies, tuple(problems))


def shorten(names: Iterable[Any], most: int = 5) -> str:
    """Formats the first of many names, and how many there are, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _image(
    entry: Entry, annotations: list[Entry], folder: Path, file: Path
) -> tuple[GroundTruthImage, list[BadRecord]]:
    """Returns an image with the annotations whose masks can be read, and what is wrong with the others.

    Raises:
        BadRecord: the image is larger than those that are read, or none of its masks can be.
    """
    size, where = (int(entry["height"]), int(entry["width"])), f"{file}: {image_name(entry)}"
    if not is_image_size(*size):
        raise BadRecord("image without a size", where, f"{size} (h, w)")
    sound, problems = sound_masks(annotations, size, where)
    if problems and not sound:  # everything that is found there would count as wrong
        raise problems[0]
    for annotation in sound:
        if not is_box(annotation.get("bbox")):
            annotation["bbox"] = coco_bbox(read_mask(annotation["segmentation"], size, where)[0])
    gt_image = GroundTruthImage(
        int(entry["id"]),
        locate_image(folder, image_name(entry)),
        size,
        tuple(sound),
        frozenset(entry.get("neg_category_ids") or ()),
        frozenset(entry.get("not_exhaustive_category_ids") or ()),
    )
    return gt_image, problems
