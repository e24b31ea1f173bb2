"""The stages of a project: how to start one, how to move between stages, and a summary of what has been done."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam_jax.checkpoints.hub import EMBEDDED
from sam_jax.engine.datasets import list_versions
from sam_jax.engine.models import add_model, current_model, list_models, replacement_of
from sam_jax.engine.records import STAGES, Stage
from sam_jax.engine.statements import mask_from_json
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.ops.rle import rle_iou

SLIGHT_EDIT_IOU = 0.9  # a pre-filled mask with at least this IoU before and after its edit counts as correct


def init_project(folder: Path, images: Path, model: str | None, held_out: float) -> tuple[Store, int]:
    """Creates a project, or adds new images to one.

    Args:
        folder: folder of the project.
        images: folder that is searched for images, with all folders below it.
        model: name or path of the model to start with; None: `small`, or the one that the project has. In a project
            whose model the package no longer has, it takes that one's place.
        held_out: fraction of the images on which models are evaluated, 0 to 1.

    Returns:
        The store, and the number of images that are new.

    Raises:
        MissingFile: the folder of images does not exist.
        UserError: it contains no images, or the project was started with another model.
    """
    from sam_jax.data.images import find_images

    found = find_images([images], folder)
    store = Store(folder)
    first, current = next(iter(list_models(store, "sam")), None), current_model(store)
    if first is None:
        add_model(store, "sam", "promoted", _source(model or EMBEDDED))
    elif model is not None and _source(model) != first.source:
        if current is None or replacement_of(store, current) is None:
            raise UserError(f"{folder} began with the model {first.source}; got {_source(model)}")
        add_model(store, "sam", "promoted", _source(model))
    return store, store.add_images(images, [str(stored.name) for stored in found], held_out)


def _source(model: str) -> str:
    return str(Path(model).resolve()) if Path(model).exists() else model


def move_to_stage(store: Store, stage: Stage) -> None:
    """Moves a project to the next stage, or to the one before.

    Raises:
        UserError: the stage is not next to the current one.
    """
    here = store.stage
    if abs(STAGES.index(stage) - STAGES.index(here)) > 1:
        raise UserError(f"expected the stage before or after {here}, got {stage}; stages are {', '.join(STAGES)}")
    store.set_stage(stage)


@dataclasses.dataclass(frozen=True)
class PrefillJudgement:
    """What people did with pre-filled masks, as counts of masks on finished images."""

    accepted: int = 0  # as they were, each by itself
    slightly: int = 0  # edited, with an IoU of at least SLIGHT_EDIT_IOU before and after
    much: int = 0  # edited, with a lower IoU
    rejected: int = 0  # rejected or deleted
    left: int = 0  # nobody touched them before the image was finished, which kept them

    @property
    def judged(self) -> int:
        """The number of masks that somebody accepted, edited or rejected."""
        return self.accepted + self.slightly + self.much + self.rejected

    @property
    def precision(self) -> float | None:
        """The fraction of judged masks that were accepted or edited slightly; None if none was judged."""
        return (self.accepted + self.slightly) / self.judged if self.judged else None


def judge_prefilled(store: Store) -> PrefillJudgement:
    """Counts what people did with pre-filled masks. On images that were opened again since, none counts as left."""
    counts = Counter(_judgements(store))
    return PrefillJudgement(**counts)


def _judgements(store: Store) -> Iterator[str]:
    rows = store.rows(
        "SELECT masks.record AS last, deleted, history.record AS first, "
        "(SELECT annotator FROM history WHERE mask_id = masks.id ORDER BY id DESC LIMIT 1) AS who, "
        "changed = finished AS kept_by_finishing "
        "FROM masks JOIN pictures ON pictures.id = picture_id "
        "JOIN history ON history.id = (SELECT min(id) FROM history WHERE mask_id = masks.id) "
        "WHERE pictures.state = 'done' AND json_extract(masks.record, '$.origin') = 'prefilled'"
    )
    for row in rows:
        first, last = mask_from_json(row["first"]), mask_from_json(row["last"])
        if row["deleted"]:
            if row["who"] != first.annotator:  # otherwise the masks of a newer model replaced it
                yield "rejected"
        elif last.state == "rejected":
            yield "rejected"
        elif first.segmentation == last.segmentation:
            yield "left" if row["kept_by_finishing"] else "accepted"
        else:
            yield "slightly" if rle_iou(first.segmentation, last.segmentation) >= SLIGHT_EDIT_IOU else "much"


def summarize(store: Store) -> dict[str, Any]:
    """Returns the state of a project as data for JSON: stage, images, masks, annotators, datasets and models."""
    states = store.rows("SELECT split, state, count(*) AS n FROM pictures GROUP BY split, state")
    masks = store.rows(
        "SELECT stage, json_extract(record, '$.origin') AS origin, json_extract(record, '$.state') AS state, "
        "count(*) AS n FROM masks WHERE NOT deleted GROUP BY 1, 2, 3"
    )
    people = store.rows(
        "SELECT annotator, sum(state = 'open') AS open, sum(state = 'done') AS done, sum(seconds) AS seconds "
        "FROM pictures WHERE annotator IS NOT NULL GROUP BY annotator ORDER BY annotator"
    )
    current, judged = current_model(store), judge_prefilled(store)
    return {
        "stage": store.stage,
        "pictures": [dict(row) for row in states],
        "masks": [dict(row) for row in masks],
        "annotators": [dict(row) for row in people],
        "prefilled": dataclasses.asdict(judged) | {"precision": judged.precision},
        "datasets": [dataclasses.asdict(version) for version in list_versions(store)],
        "models": [dataclasses.asdict(model) for model in list_models(store)],
        "model": None if current is None else current.number,
    }


def describe_status(summary: dict[str, Any]) -> str:
    """Returns a summary as text, which `sam-jax engine status` prints."""
    counts = Counter({(row["split"], row["state"]): row["n"] for row in summary["pictures"]})
    lines = [f"stage: {summary['stage']}"]
    for split in ("train", "held_out"):
        states = ", ".join(f"{counts[split, state]} {state}" for state in ("done", "open", "free"))
        lines.append(f"images, {split.replace('_', ' ')}: {states}")
    for row in summary["masks"]:
        lines.append(f"masks, {row['stage']}: {row['n']} {row['origin']}, {row['state']}")
    lines += _describe_prefilled(summary["prefilled"])
    for row in summary["annotators"]:
        lines.append(f"annotator {row['annotator']}: {row['done']} done, {row['open']} open, {row['seconds']:.0f} s")
    for row in summary["datasets"]:
        lines.append(f"dataset {row['number']}: {row['masks']} masks on {row['pictures']} images, {row['at'][:19]}")
    for row in summary["models"]:
        lines.append(describe_model(row, summary["model"]))
    return "\n".join(lines)


def _describe_prefilled(row: dict[str, Any]) -> list[str]:
    edited = row["slightly"] + row["much"]
    lines = []
    if row["precision"] is not None:
        lines.append(
            f"pre-filled masks, judged: {row['accepted']} accepted, {edited} edited ({row['slightly']} slightly), "
            f"{row['rejected']} rejected: precision {row['precision']:.1%}"
        )
    if row["left"]:
        lines.append(f"pre-filled masks that nobody judged, kept when their images were finished: {row['left']}")
    return lines


def describe_model(row: dict[str, Any], current: int | None) -> str:
    """Describes a model version in one line.

    Args:
        row: an entry of `models` in the result of `summarize`.
        current: number of the version that is in use.
    """
    parts = [f"{row['kind']} {row['number']}: {row['state']}"]
    if row["dataset"] is None:
        parts.append(row["source"])
    else:
        parts.append(f"from model {row['parent']} on dataset {row['dataset']}")
    if row["held_out"] is not None:
        held = row["held_out"]
        parts.append(f"held-out mIoU {held['miou']:.2f} ({held['masks']} masks, version {held['version']})")
    return ", ".join(parts) + (", in use" if row["number"] == current else "")


def unfinished_paths(store: Store) -> list[str]:
    """Returns the paths of the training images that nobody has finished: the input of the automatic stage."""
    return [str(p.path) for p in store.images("free") if p.split == "train"]
