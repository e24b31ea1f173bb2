"""Statistics of a project's masks, stage by stage: the ones by which the paper analyses its dataset.

Size is the square root of mask area over image area. Concavity is one minus mask area over the area of its convex hull.

Reference: paper, section 5, figures 5 and 6.
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
from sam_jax.engine.statements import mask_from_json
from sam_jax.engine.store import Store
from sam_jax.files import read_json
from sam_jax.ops.rle import Rle, decode_rle

MAX_SHAPES = 20_000  # of a stage with more masks, a random sample of this size is used


class MaskShape(NamedTuple):
    """Size, concavity and centre of a mask, relative to its image."""

    size: float  # sqrt(area / area of the image)
    concavity: float  # 1 - area / area of the convex hull
    x: float  # centre, 0 (left) to 1 (right)
    y: float  # centre, 0 (top) to 1 (bottom)


@dataclasses.dataclass(frozen=True)
class StageStatistics:
    """Statistics of the masks of one stage."""

    per_image: list[int]  # number of accepted and edited masks on each finished image
    shapes: Float[np.ndarray, "N 4"]  # rows are `MaskShape`
    seconds: list[float]  # of the masks that people spent time on
    states: dict[str, int]  # "manual, accepted", ... -> masks


def compute_shape(mask: Rle) -> MaskShape:
    """Returns the shape of a mask, which must not be empty."""
    pixels = decode_rle(mask)
    height, width = pixels.shape
    rows, columns = np.nonzero(pixels)
    top, left = int(rows.min()), int(columns.min())
    part = np.ascontiguousarray(pixels[top : rows.max() + 1, left : columns.max() + 1], np.uint8)
    corners = np.concatenate(cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0])
    hull = cv2.fillConvexPoly(np.zeros(part.shape, np.uint8), cv2.convexHull(corners), 1)
    area = len(rows)
    # The hull is filled up to and including the outer pixels, as the mask is.
    concavity = 1 - area / max(area, int(hull.sum()))
    return MaskShape(
        (area / (height * width)) ** 0.5,
        concavity,
        (float(columns.mean()) + 0.5) / width,
        (float(rows.mean()) + 0.5) / height,
    )


def compute_statistics(store: Store) -> dict[Stage, StageStatistics]:
    """Computes the statistics of every stage that has masks.

    Masks by people are those on finished training images, counted in the stage in which each was made. Automatic masks
    are those of the newest dataset version that contains some.
    """
    found = {stage: _people_statistics(store, stage) for stage in STAGES}
    automatic = [version for version in list_versions(store) if version.origins.get("automatic")]
    if automatic:
        folder = version_folder(store, "train", automatic[-1].number) / AUTOMATIC
        contents = [read_json(path)["annotations"] for path in sorted(folder.glob("*.json"))]
        found["automatic"] = StageStatistics(
            [len(annotations) for annotations in contents],
            _compute_shapes([annotation["segmentation"] for annotations in contents for annotation in annotations]),
            [],
            {"automatic, accepted": sum(map(len, contents))},
        )
    return {stage: statistics for stage, statistics in found.items() if statistics.states}


def _people_statistics(store: Store, stage: Stage) -> StageStatistics:
    rows = store.rows(
        "SELECT picture_id, masks.record FROM masks JOIN pictures ON pictures.id = picture_id "
        "WHERE NOT deleted AND masks.stage = ? AND pictures.state = 'done' AND split = 'train' ORDER BY picture_id",
        (stage,),
    )
    masks = [(row["picture_id"], mask_from_json(row["record"])) for row in rows]
    used = [(image, mask) for image, mask in masks if mask.state in KEPT]
    states = [f"{mask.origin}, {mask.state}" for _, mask in masks]
    return StageStatistics(
        list(_count(image for image, _ in used).values()),
        _compute_shapes([mask.segmentation for _, mask in used]),
        [mask.seconds for _, mask in used if mask.seconds > 0],
        _count(states),
    )


def _compute_shapes(masks: list[Rle]) -> np.ndarray:
    drawn = random.Random(0).sample(masks, MAX_SHAPES) if len(masks) > MAX_SHAPES else masks
    return np.array([compute_shape(mask) for mask in drawn], float).reshape(-1, 4)


def _count(things: Iterable[Any]) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for thing in things:
        counts[thing] = counts.get(thing, 0) + 1
    return counts


def summarize_statistics(statistics: StageStatistics) -> dict[str, float | int | None]:
    """Returns the figures of one row of the report's table, by column name; None where there are no masks."""

    def median(values: Any) -> float | None:
        return float(np.median(values)) if len(values) else None

    return {
        "pictures": len(statistics.per_image),
        "masks": sum(statistics.per_image),
        "masks per image": float(np.mean(statistics.per_image)) if statistics.per_image else None,
        "median size": median(statistics.shapes[:, 0]),
        "median concavity": median(statistics.shapes[:, 1]),
        "median seconds per mask": median(statistics.seconds),
    }
