"""Writes segmentation labels as Ultralytics' YOLO models train on: a text file for each image, a polygon per line.

A line is `class x1 y1 x2 y2 ...`, x and y as fractions of the image's width and height. Classes count from 0.

Reference: https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sam_jax.everything.formats.common import AnnotatedImage, OutputFormat, category_index
from sam_jax.files import write, write_atomically
from sam_jax.ops.regions import mask_polygon
from sam_jax.ops.rle import decode_rle

FEWEST = 3  # points of a polygon; shorter lines are taken for boxes


def write_labels(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes an image's polygons through the centres of the outermost pixels; empty masks are left out."""
    height, width = annotated.size
    lines = []
    for record in annotated.records:
        polygon = mask_polygon(decode_rle(record["segmentation"]))
        if len(polygon):
            polygon = polygon[[*range(len(polygon)), *[0] * (FEWEST - len(polygon))]]
            numbers = ((polygon + 0.5) / (width, height)).reshape(-1)
            lines.append(f"{category_index(record, categories)} {' '.join(f'{x:.6f}' for x in numbers)}\n")
    write(path, "".join(lines))


def write_data_yaml(out: Path, names: Sequence[tuple[int, PurePosixPath]], categories: Sequence[str]) -> None:
    """Writes `out/data.yaml`, which names the classes and says where the images belong."""
    classes = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(categories))
    write_atomically(
        out / "data.yaml",
        "# Put the images into images/, under the names and subfolders that the files in labels/ have.\n"
        f"train: images\nval: images\nnames:\n{classes}",
    )


FORMAT = OutputFormat(
    "yolo", "polygons in labels/, and data.yaml", ".txt", write_labels, folder="labels", merge=write_data_yaml
)
