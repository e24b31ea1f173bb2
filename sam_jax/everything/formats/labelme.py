"""Writes polygons as LabelMe's editor opens them: a JSON file for each image, to lie beside it.

Each part of a mask is a polygon, simplified so that it can be edited; parts of one mask share a group. Holes, which a
polygon of LabelMe has not, are cut open.

Reference: https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sam_jax.everything.formats.common import OBJECT, AnnotatedImage, OutputFormat
from sam_jax.files import write
from sam_jax.ops.regions import join_rings, outlines
from sam_jax.ops.rle import decode_rle

TOLERANCE = 1.0  # pixels that a polygon may be off
FEWEST = 3  # points of a polygon


def write_shapes(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes an image's polygons; empty masks are left out."""
    shapes = []
    for number, record in enumerate(annotated.records):
        parts = outlines(decode_rle(record["segmentation"]), TOLERANCE)
        for part in parts:
            points = join_rings([part.outer, *part.holes]).tolist()
            shapes.append(
                {
                    "label": record.get("name") or OBJECT,
                    "points": points + points[:1] * (FEWEST - len(points)),
                    "group_id": number if len(parts) > 1 else None,
                    "shape_type": "polygon",
                    "flags": {},
                }
            )
    height, width = annotated.size
    content: dict[str, Any] = {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": PurePosixPath(annotated.file_name).name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write(path, json.dumps(content))


FORMAT = OutputFormat("labelme", "polygons that LabelMe edits", ".json", write_shapes)
