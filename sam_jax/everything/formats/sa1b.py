"""Writes SA-1B's JSON for each image.

Reference: the data set's description in the official repository's README.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam_jax.everything.formats.common import AnnotatedImage, OutputFormat
from sam_jax.files import write
from sam_jax.types import Record


def write_sa1b(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes an image's JSON; the ids of annotations count within the image."""
    write(path, json.dumps(sa1b_content(annotated)))


def sa1b_content(annotated: AnnotatedImage, first_id: int = 0) -> dict[str, Any]:
    """Returns the content of an image's JSON.

    Args:
        first_id: id of its first annotation; the others have the numbers after it.
    """
    return {
        "image": annotated.entry() | {"image_id": annotated.image_id},
        "annotations": [sa1b_annotation(first_id + i, record) for i, record in enumerate(annotated.records)],
    }


def sa1b_annotation(number: int, record: Record) -> dict[str, Any]:
    """Returns a mask as SA-1B has it: with an id, and boxes of floats whose width is x_max - x_min."""
    return record | {"id": number} | {field: [float(x) for x in record[field]] for field in ("bbox", "crop_box")}


FORMAT = OutputFormat("sa1b", "a JSON per image, as in SA-1B", ".json", write_sa1b)
