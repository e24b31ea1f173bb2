"""Writes one COCO-format file for all images, put together from a part for each.

Reference: Lin et al. 2014, and pycocotools, which reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sam_jax.everything.formats.common import AnnotatedImage, OutputFormat, category_index
from sam_jax.files import open_to_write, read_json, replacing, write
from sam_jax.ops.rle import coco_bbox


def write_part(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes one image's part; ids come with `merge_parts`. Boxes are COCO's: one pixel has width 1."""
    annotations = [
        record
        | {
            "bbox": coco_bbox(record["segmentation"]),
            "category_id": 1 + category_index(record, categories),
            "iscrowd": 0,
        }
        for record in annotated.records
    ]
    write(path, json.dumps({"image": annotated.entry(), "annotations": annotations}))


def merge_parts(out: Path, names: Sequence[tuple[int, PurePosixPath]], categories: Sequence[str]) -> None:
    """Writes `out/instances.json` from the parts of the finished images, one image after the other."""
    images, next_id = [], 1
    listed = [{"id": number, "name": name} for number, name in enumerate(categories, start=1)]
    with replacing(out / "instances.json") as temporary, open_to_write(temporary) as file:
        file.write('{"info": {"description": "masks of sam_jax"}, "licenses": [], ')
        file.write(f'"categories": {json.dumps(listed)}, "annotations": [')
        for image_id, name in names:
            part = FORMAT.target(out, name)
            if part.is_file():
                content = read_json(part)
                images.append({"id": image_id} | content["image"])
                for annotation in content["annotations"]:
                    file.write(",\n" if next_id > 1 else "\n")
                    file.write(json.dumps({"id": next_id, "image_id": image_id} | annotation))
                    next_id += 1
        file.write(f'],\n"images": {json.dumps(images)}}}\n')


FORMAT = OutputFormat(
    "coco",
    "one instances.json for all images",
    ".json",
    write_part,
    folder="parts",
    merge=merge_parts,
    only_parts=True,
)
