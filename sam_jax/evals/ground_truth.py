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

from sam_jax.data.coco import NAME, image_name, locate_image, read_coco_file
from sam_jax.data.examples import Example
from sam_jax.data.segmentations import read_mask
from sam_jax.errors import UserError

AnnotatedObject = dict[str, Any]
"""One object of an image: `id`, `category_id`, `segmentation` (RLE), `bbox` (x, y, w, h), `area`, `iscrowd`."""

ANY_CATEGORY = -1  # the single category of class-agnostic evaluation
FIELDS = {
    "images": ("id", NAME, "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id",),
}
FREQUENCIES = {"f": "frequent", "c": "common", "r": "rare"}


@dataclasses.dataclass(frozen=True)
class GroundTruthImage:
    """One image and its annotations, unchanged from the file."""

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
        UserError: it is not a COCO or LVIS file, ids are duplicate or refer to nothing, or there are no objects; the
            message names them.
    """
    content = read_coco_file(file, FIELDS, references=True)
    for kind in (content.images, content.categories):
        if texts := [entry["id"] for entry in kind if isinstance(entry["id"], str)]:
            raise UserError(f"expected numbers as ids of images and categories in {file}, got {shorten(texts)}")
    folder = content.image_folder(images, required=False)
    categories = {int(e["id"]): str(e.get("name", e["id"])) for e in content.categories}
    frequencies = {e["id"]: e["frequency"] for e in content.categories if "frequency" in e}
    annotations = content.annotations_by_image()
    entries = {e["id"]: e for e in content.images}
    gt_images = {id_: _image(entries[id_], annotations[id_], folder) for id_ in sorted(entries)}
    if frequencies and (len(frequencies) < len(categories) or not set(frequencies.values()) <= set(FREQUENCIES)):
        raise UserError(f"expected a frequency (f, c or r) for each of {len(categories)} categories in {file}")
    if not any(gt_image.annotations for gt_image in gt_images.values()):
        raise UserError(f"expected annotated objects in {file}, got none on {len(gt_images)} images")
    return GroundTruth(file, gt_images, categories, frequencies)


def shorten(names: Iterable[Any], most: int = 5) -> str:
    """Formats the first of many names, and how many there are, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _image(entry: dict[str, Any], annotations: list[dict], folder: Path) -> GroundTruthImage:
    return GroundTruthImage(
        int(entry["id"]),
        locate_image(folder, image_name(entry)),
        (int(entry["height"]), int(entry["width"])),
        tuple(annotations),
        frozenset(entry.get("neg_category_ids", ())),
        frozenset(entry.get("not_exhaustive_category_ids", ())),
    )
