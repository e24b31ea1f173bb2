"""What the paper's analysis of its data looks at, measured on a project's masks, stage by stage.

Reference: paper, section 5, figures 5 and 6. Size is the square root of the share of the image, concavity is one
minus the mask's share of its convex hull.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from sam_jax.engine.datasets import AUTOMATIC, list_versions, version_folder
from sam_jax.engine.records import KEPT, STAGES, Stage
from sam_jax.engine.statements import from_json
from sam_jax.engine.store import Store
from sam_jax.files import read_json
from sam_jax.ops.rle import Rle, decode_rle

MOST_SHAPES = 20_000  # masks of a stage whose shape is measured, drawn at random


class MaskShape(NamedTuple):
    size: float  # sqrt(area / area of the image)
    concavity: float  # 1 - area / area of the convex hull
    x: float  # centre, 0..1 from left to right
    y: float  # from top to bottom


@dataclasses.dataclass(frozen=True)
class StageMeasures:
    """One stage's masks."""

    per_image: list[int]  # accepted and edited masks of each finished image
    shapes: Float[np.ndarray, "N 4"]  # rows are `MaskShape`
    seconds: list[float]  # of the masks that people spent time on
    states: dict[str, int]  # "manual, accepted", ... -> masks


def measure_shape(mask: Rle) -> MaskShape:
    """Returns the shape of a mask that isn't empty."""
    pixels = decode_rle(mask)
    height, width = pixels.shape
    rows, columns = np.nonzero(pixels)
    top, left = int(rows.min()), int(columns.min())
    part = np.ascontiguousarray(pixels[top : rows.max() + 1, left : columns.max() + 1], np.uint8)
    corners = np.concatenate(cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0])
    hull = cv2.fillConvexPoly(np.zeros(part.shape, np.uint8), cv2.convexHull(corners), 1)
    area = len(rows)
    # The hull is drawn through the centres of the outer pixels, which it contains, as the mask does.
    concavity = 1 - area / max(area, int(hull.sum()))
    return MaskShape(
        (area / (height * width)) ** 0.5,
        concavity,
        (float(columns.mean()) + 0.5) / width,
        (float(rows.mean()) + 0.5) / height,
    )


def measure_stages(store: Store) -> dict[Stage, StageMeasures]:
    """The stages that have masks. People's are those of the finished training images, in the stage in which each mask
    was made; automatic ones are those of the newest dataset version that has some.
    """
    found = {stage: _measure_people(store, stage) for stage in STAGES}
    automatic = [version for version in list_versions(store) if version.origins.get("automatic")]
    if automatic:
        folder = version_folder(store, "train", automatic[-1].number) / AUTOMATIC
        contents = [read_json(path)["annotations"] for path in sorted(folder.glob("*.json"))]
        found["automatic"] = StageMeasures(
            [len(annotations) for annotations in contents],
            _measure_shapes([annotation["segmentation"] for annotations in contents for annotation in annotations]),
            [],
            {"automatic, accepted": sum(map(len, contents))},
        )
    return {stage: measures for stage, measures in found.items() if measures.states}


def _measure_people(store: Store, stage: Stage) -> StageMeasures:
    rows = store.rows(
        "SELECT picture_id, masks.record FROM masks JOIN pictures ON pictures.id = picture_id "
        "WHERE NOT deleted AND masks.stage = ? AND pictures.state = 'done' AND split = 'train' ORDER BY picture_id",
        (stage,),
    )
    masks = [(row["picture_id"], from_json(row["record"])) for row in rows]
    used = [(image, mask) for image, mask in masks if mask.state in KEPT]
    states = [f"{mask.origin}, {mask.state}" for _, mask in masks]
    return StageMeasures(
        list(_count(image for image, _ in used).values()),
        _measure_shapes([mask.segmentation for _, mask in used]),
        [mask.seconds for _, mask in used if mask.seconds > 0],
        _count(states),
    )


def _measure_shapes(masks: list[Rle]) -> np.ndarray:
    drawn = random.Random(0).sample(masks, MOST_SHAPES) if len(masks) > MOST_SHAPES else masks
    return np.array([measure_shape(mask) for mask in drawn], float).reshape(-1, 4)


def _count(things: Iterable[Any]) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for thing in things:
        counts[thing] = counts.get(thing, 0) + 1
    return counts


def summarize_measures(measures: StageMeasures) -> dict[str, float | int | None]:
    """The numbers of a row of the report."""

    def median(values: Any) -> float | None:
        return float(np.median(values)) if len(values) else None

    return {
        "pictures": len(measures.per_image),
        "masks": sum(measures.per_image),
        "masks per image": float(np.mean(measures.per_image)) if measures.per_image else None,
        "median size": median(measures.shapes[:, 0]),
        "median concavity": median(measures.shapes[:, 1]),
        "median seconds per mask": median(measures.seconds),
    }
