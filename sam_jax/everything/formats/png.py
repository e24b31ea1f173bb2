"""Writes a folder for each image, with a black and white PNG per mask and metadata.csv, as the official command."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sam_jax.everything.formats.common import AnnotatedImage, OutputFormat
from sam_jax.files import make_folder, open_to_write
from sam_jax.ops.rle import decode_rle

COLUMNS = (
    *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"),
    *("predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
)


def write_folder(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes an image's masks and their table; what a mask does not have, such as a click, stays empty."""
    make_folder(path)
    with open_to_write(path / "metadata.csv", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for i, record in enumerate(annotated.records):
            point = record["point_coords"][0] if record["point_coords"] else (None, None)
            scores = (record["predicted_iou"], record["stability_score"])
            table.writerow([i, record["area"], *record["bbox"], *point, *scores, *record["crop_box"]])
            mask = decode_rle(record["segmentation"])
            Image.fromarray(mask.astype(np.uint8) * 255).save(path / f"{i}.png")


FORMAT = OutputFormat("png", "a folder of masks and metadata.csv per image", ".masks", write_folder)
