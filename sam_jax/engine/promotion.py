"""Which model is used: the newest one that is not worse on held-out images than the one before it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sam_jax.engine.datasets import DatasetVersion, freeze, version_folder
from sam_jax.engine.models import (
    HeldOut,
    ModelVersion,
    change_model,
    current_model,
    list_models,
    load_name,
    models_folder,
)
from sam_jax.engine.store import Store
from sam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Promotion:
    """What was decided."""

    candidate: ModelVersion
    current: ModelVersion  # the one that was in use before
    promoted: bool
    reason: str


def promote(store: Store, number: int | None = None) -> Promotion:
    """Measures a candidate and the current model on the held-out images as they are annotated now.

    The candidate is used from then on if its mIoU after one click is at least the current model's. Both figures, how
    sure their difference is, and the decision are noted. There is no way around it: the next stage's masks, and the
    models trained on them, would be drawn by a model that is known to be worse.

    Args:
        number: of the candidate; None: the newest.

    Raises:
        ValueError: no candidate, or no held-out image with masks.
    """
    candidates = [model for model in list_models(store, "sam") if model.state == "candidate"]
    if number is not None:  # one that was refused may be measured again, on more held-out images
        judged = ("candidate", "refused")
        candidates = [m for m in list_models(store, "sam") if m.number == number and m.state in judged]
    current = current_model(store)
    if not candidates or current is None:
        which = "a candidate" if number is None else f"a candidate of number {number}"
        raise UserError(f"expected {which} in {store.folder}, found none; train one first (sam-jax engine train)")
    candidate = candidates[-1]
    held_out = freeze(store, "held_out")
    before, after = (measure(store, model, held_out) for model in (current, candidate))
    low, high = difference_interval(store, candidate, current, held_out)
    figures = (
        f"{after.miou:.2f} against {before.miou:.2f} of model {current.number}, mIoU after one click on {after.masks} "
        f"masks of held-out images (95 % interval of the difference: {low:+.2f} to {high:+.2f})"
    )
    good = after.miou >= before.miou
    reason = figures if good else f"{figures}: it fell"
    current = change_model(store, current, current.state, before, "measured beside a candidate")
    changed = change_model(store, candidate, "promoted" if good else "refused", after, reason)
    return Promotion(changed, current, good, reason)


def measure(store: Store, model: ModelVersion, held_out: DatasetVersion) -> HeldOut:
    """Single-point mIoU on a version of the held-out images; every mask counts. What is measured is kept.

    Raises:
        ValueError: not an image can be used.
    """
    from sam_jax.checkpoints.hub import load_model
    from sam_jax.data.sa1b import Sa1bSource, pairs_of_folder
    from sam_jax.evals.click_runs import run_clicks, sample_examples
    from sam_jax.evals.click_simulation import ClickRules
    from sam_jax.evals.segmenters import SamSegmenter
    from sam_jax.evals.single_point import count_record, summarize

    folder = version_folder(store, "held_out", held_out.number)
    sample = sample_examples(Sa1bSource(pairs=list(pairs_of_folder(folder, None))), folder=folder)
    segmenter = SamSegmenter(load_model(load_name(store, model)))
    out = _records(store, model, held_out)
    sums, _ = run_clicks(
        segmenter, {"held out": sample}, ClickRules(1, "center"), out, {"sha256": held_out.sha256}, count_record
    )
    summary = summarize(sums["held out"])
    return HeldOut(held_out.number, round(summary["iou@1"], 4), summary["masks"])


def difference_interval(
    store: Store, candidate: ModelVersion, current: ModelVersion, held_out: DatasetVersion
) -> tuple[float, float]:
    """95 % interval of the difference in mIoU, percent points, of two measured models (bootstrap over images)."""
    from sam_jax.evals.compare import compare

    (found,) = compare(
        _records(store, candidate, held_out) / "sam.jsonl", _records(store, current, held_out) / "sam.jsonl"
    )
    return found.low, found.high


def _records(store: Store, model: ModelVersion, held_out: DatasetVersion) -> Path:
    """Folder of what was measured of a model, mask by mask."""
    return models_folder(store, model.number) / f"held_out_{held_out.number:04d}"
