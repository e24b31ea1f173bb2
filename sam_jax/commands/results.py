"""Writes what several commands write: images, masks as JSON, and which files failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.files import make_folder, replacing, write
from sam_jax.ops.rle import coco_bbox, encode_rle


def mask_records(masks: Sequence[np.ndarray], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Returns an entry with run lengths, box (x, y, w, h), area and predicted IoU for each mask."""
    records = []
    for mask, score in zip(masks, scores, strict=True):
        rle = encode_rle(mask)
        record = {"segmentation": rle, "bbox": coco_bbox(rle), "area": int(mask.sum())}
        records.append(record | {"predicted_iou": round(float(score), 4)})
    return records


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes PNG images and JSON, each under a temporary name first, and prints where."""
    make_folder(folder)
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            if isinstance(content, dict):
                write(temporary, json.dumps(content))
            else:
                Image.fromarray(content).save(temporary, "PNG")
        print(folder / name)


def explain_empty(images: int, dropped: str) -> str:
    """Returns a line about images that everything mode leaves without masks, with what its filters dropped there."""
    return (
        f"{images} images are without masks: {dropped}; --pred-iou-thresh and --stability-score-thresh let more through"
    )


def print_failures(what: str, failures: Mapping[Any, str]) -> None:
    """Prints a line for each file that failed (path -> reason) to standard error."""
    for path, reason in failures.items():
        print(f"sam-jax: {what}: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
