"""Promotion: a new model is used only if it is not worse on the held-out images than the current one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sam_jax.engine.datasets import DatasetVersion, freeze, version_folder
from sam_jax.engine.models import (
    HeldOutMetrics,
    ModelVersion,
    change_model,
    current_model,
    list_models,
    load_name,
    model_folder,
)
from sam_jax.engine.store import Store
from sam_jax.errors import UserError

MIN_IMAGES = 6  # with fewer, all may move the same way by chance more often than 1 time in 20: 2 * 0.5 ** 5 = 6 %


@dataclasses.dataclass(frozen=True)
class Promotion:
    """The decision on a candidate."""

    candidate: ModelVersion
    current: ModelVersion  # the model that was in use before
    promoted: bool | None  # None: there are too few held-out images to decide
    reason: str


def promote(store: Store, number: int | None = None) -> Promotion:
    """Evaluates a candidate and the current model on the held-out images, and promotes the candidate if it is as good.

    The candidate is promoted if its mIoU after one click is at least that of the current model. Both values, the
    confidence interval of their difference, and the decision are recorded. The rule cannot be overridden: a worse model
    would draw the next stage's masks, on which the next models are trained. On fewer than `MIN_IMAGES` images nothing
    is evaluated or decided, and the candidate stays one.

    Args:
        number: number of the candidate; None means the newest.

    Raises:
        UserError: there is no candidate, or no held-out image with masks.
    """
    candidates = [model for model in list_models(store, "sam") if model.state == "candidate"]
    if number is not None:  # one that was refused may be evaluated again, on more held-out images
        judged = ("candidate", "refused")
        candidates = [m for m in list_models(store, "sam") if m.number == number and m.state in judged]
    current = current_model(store)
    if not candidates or current is None:
        which = "a candidate" if number is None else f"a candidate of number {number}"
        raise UserError(f"expected {which} in {store.folder}, found none; train one first (sam-jax engine train)")
    candidate = candidates[-1]
    held_out = freeze(store, "held_out")
    if held_out.pictures < MIN_IMAGES:
        return Promotion(candidate, current, None, _explain_too_few(store, held_out.pictures))
    before, after = (evaluate(store, model, held_out) for model in (current, candidate))
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


def _explain_too_few(store: Store, images: int) -> str:
    left = sum(stored.split == "held_out" for state in ("open", "free") for stored in store.images(state))
    way = (
        f"annotate {MIN_IMAGES - images} more of the {left} held-out images that are left"
        if images + left >= MIN_IMAGES
        else "add images, of which more are held out (sam-jax engine init PROJECT --images FOLDER --held-out 0.3), and "
        "annotate those"
    )
    few = f"{images} held-out image{'s have' if images > 1 else ' has'} masks"
    return f"{few}, and on fewer than {MIN_IMAGES} a difference may well be chance; {way}"


def evaluate(store: Store, model: ModelVersion, held_out: DatasetVersion) -> HeldOutMetrics:
    """Computes a model's single-point mIoU, averaged over all masks of a version of the held-out images.

    The IoU of every mask is kept in the model's folder, and not computed again.

    Raises:
        UserError: no image can be used.
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
    counts, _ = run_clicks(
        segmenter, {"held out": sample}, ClickRules(1, "center"), out, {"sha256": held_out.sha256}, count_record
    )
    summary = summarize(counts["held out"])
    return HeldOutMetrics(held_out.number, round(summary["iou@1"], 4), summary["masks"])


def difference_interval(
    store: Store, candidate: ModelVersion, current: ModelVersion, held_out: DatasetVersion
) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the difference in mIoU of two evaluated models.

    The interval, in percentage points, comes from a bootstrap over images.
    """
    from sam_jax.evals.compare import compare

    (found,) = compare(
        _records(store, candidate, held_out) / "sam.jsonl", _records(store, current, held_out) / "sam.jsonl"
    )
    return found.low, found.high


def _records(store: Store, model: ModelVersion, held_out: DatasetVersion) -> Path:
    """Returns the folder in which the IoU of a model on every mask is kept."""
    return model_folder(store, model.number) / f"held_out_{held_out.number:04d}"
