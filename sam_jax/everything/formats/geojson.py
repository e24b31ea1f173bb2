"""Writes polygons as GeoJSON, in pixels of the image, as QuPath and tools for maps read them: a file for each image.

A mask is a MultiPolygon with its holes. Coordinates are (x, y) of pixel corners: a pixel at (3, 5) covers 3 to 4 and 5
to 6, and y points down.

Reference: RFC 7946, but for its coordinates, which are degrees.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from sam_jax.everything.formats.common import OBJECT, AnnotatedImage, OutputFormat
from sam_jax.files import write
from sam_jax.ops.regions import outlines
from sam_jax.ops.rle import decode_rle


def write_features(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes an image's masks as features; empty masks are left out."""
    features = []
    for number, record in enumerate(annotated.records):
        polygons = pixel_polygons(decode_rle(record["segmentation"]))
        if polygons:
            properties = {"name": record.get("name") or OBJECT, "predicted_iou": record.get("predicted_iou")}
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
            features.append({"type": "Feature", "id": number, "properties": properties, "geometry": geometry})
    write(path, json.dumps({"type": "FeatureCollection", "features": features}))


def pixel_polygons(mask: Bool[np.ndarray, "H W"]) -> list[list[list[list[int]]]]:
    """Returns the exact edges of a mask's parts: of each a closed ring around it, then one around each hole."""
    # In a mask of twice the size, pixels along a left or an upper edge have even numbers, along the others odd ones.
    parts = outlines(np.repeat(np.repeat(mask, 2, 0), 2, 1))
    return [[_corners(ring) for ring in (part.outer, *part.holes)] for part in parts]


def _corners(ring: Int[np.ndarray, "N 2"]) -> list[list[int]]:
    """Returns the corners of a ring of pixels of a doubled mask, in pixels, the first one again at the end."""
    points = (ring + 1) // 2
    points = points[(points != np.roll(points, 1, 0)).any(1)]
    return [*points.tolist(), points[0].tolist()]


FORMAT = OutputFormat("geojson", "outlines in pixels, with holes", ".geojson", write_features)
