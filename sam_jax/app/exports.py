"""What is saved, for download: an image as an SA-1B JSON, or all of them as one COCO file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from sam_jax.engine.records import MaskRecord, StoredImage
from sam_jax.engine.store import Store
from sam_jax.ops.rle import rle_area, rle_box

KEPT = ("accepted", "edited")


def to_sa1b(stored: StoredImage, masks: Iterable[MaskRecord]) -> dict[str, Any]:
    """As in the SA-1B dataset, with the objects' names."""
    annotations = [
        {
            "id": number,
            "segmentation": mask.segmentation,
            "bbox": rle_box(mask.segmentation),
            "area": rle_area(mask.segmentation),
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            "crop_box": [0.0, 0.0, float(stored.width), float(stored.height)],
            "point_coords": [[p["x"], p["y"]] for p in mask.prompts if p["type"] == "point" and p["label"] == 1],
            "name": mask.name,
        }
        for number, mask in enumerate(mask for mask in masks if mask.state in KEPT)
    ]
    image = {"image_id": stored.id, "width": stored.width, "height": stored.height, "file_name": stored.name}
    return {"image": image, "annotations": annotations}


def to_coco(store: Store) -> dict[str, Any]:
    """All saved masks. Names are the categories; what has no name is an object."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for stored in store.images():
        masks = [mask for mask in store.masks(stored.id) if mask.state in KEPT]
        if not masks:
            continue
        fields = dataclasses.asdict(stored)
        images.append({"file_name": stored.name} | {key: fields[key] for key in ("id", "width", "height")})
        for mask in masks:
            category = categories.setdefault(mask.name or "object", len(categories) + 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": stored.id,
                    "category_id": category,
                    "segmentation": mask.segmentation,
                    "bbox": rle_box(mask.segmentation),
                    "area": rle_area(mask.segmentation),
                    "iscrowd": 0,
                }
            )
    names = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": names}


def file_stem(stored: StoredImage) -> str:
    """A name for a download that no header or file system can mistake."""
    stem = PurePosixPath(stored.name).stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)[:80] or str(stored.id)
