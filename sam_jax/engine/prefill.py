"""The semi-automatic stage: a model puts confident masks on images that nobody has opened, for people to complete.

Reference: paper, section 4 (a box detector with one generic category, trained on the masks of the first stage).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jaxtyping import UInt8

from sam_jax.data.images import READER_THREADS, read_batches, read_image
from sam_jax.engine.models import current_model, describe, load_name
from sam_jax.engine.records import MaskRecord, Prompt, StoredImage
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.model import Sam
from sam_jax.ops.rle import Rle, rle_area, rle_iou
from sam_jax.ops.transforms import fit_image
from sam_jax.progress import ProgressBar

if TYPE_CHECKING:
    from sam_jax.everything.filter_counts import FilterCounts

SAME_OBJECT = 0.8  # masks of at least this IoU show one object: the less confident one is left out


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A mask that a model is confident about."""

    segmentation: Rle
    score: float  # confidence: the detector's score, or the predicted IoU in everything mode
    predicted_iou: float
    stability_score: float | None
    prompts: list[Prompt]


class Proposer(Protocol):
    """Proposes masks for the objects of images."""

    @property
    def name(self) -> str:
        """The model and settings that the masks depend on, in words."""
        ...

    def propose(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[Proposal]]:
        """Returns the confident masks of each image, best first. Takes at most `batch_size` images."""
        ...

    def describe_empty(self) -> str:
        """Returns what was left out of the images for which nothing was proposed so far, in words."""
        ...

    @property
    def batch_size(self) -> int:
        """The largest number of images that `propose` takes."""
        ...


@dataclasses.dataclass
class PrefillReport:
    """How many images and masks were pre-filled."""

    images: int = 0
    masks: int = 0
    empty: int = 0  # of the images, those for which no mask was proposed
    taken: int = 0  # images that somebody opened meanwhile, which are left unchanged
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # images that can't be read, and why


def prefill(store: Store, proposer: Proposer, max_images: int = 0) -> PrefillReport:
    """Puts proposed masks on training images that nobody has opened, with a progress bar.

    Images that the same proposer has filled are skipped, so a stopped run can be resumed. Masks of another proposer
    replace earlier ones that nobody has seen.

    Args:
        max_images: the largest number of images to fill; 0 means all.

    Raises:
        UserError: the project is not in the semi-automatic stage.
    """
    if store.stage != "semi-automatic":
        raise UserError(
            f"expected the semi-automatic stage to pre-fill images in, {store.folder} is in the {store.stage} one; "
            "go on to it first (sam-jax engine stage PROJECT semi-automatic)"
        )
    current = current_model(store)
    model = "" if current is None else describe(current)
    todo = store.to_prefill(proposer.name)[: max_images or None]
    report = PrefillReport()

    def read(stored: StoredImage) -> np.ndarray:
        return read_image(stored.path)

    def fail(stored: StoredImage, reason: str) -> None:
        report.failures[stored.name] = reason

    with (
        ThreadPoolExecutor(READER_THREADS) as readers,
        ProgressBar(total=len(todo), unit="image", desc="pre-filling") as bar,
    ):
        for batch in read_batches(readers, todo, read, proposer.batch_size, fail):
            proposals = proposer.propose([image for _, image in batch])
            for (stored, image), found in zip(batch, proposals, strict=True):
                store.set_size(stored.id, image.shape[1], image.shape[0])
                records = [_record(stored, proposal, rank, model) for rank, proposal in enumerate(_distinct(found))]
                if store.prefill(stored.id, records, proposer.name):
                    report.images += 1
                    report.masks += len(records)
                    report.empty += not records
                else:
                    report.taken += 1
            bar.update(len(batch))
            bar.set_postfix(masks=report.masks, refresh=False)
    return report


def _record(stored: StoredImage, proposal: Proposal, rank: int, model: str) -> MaskRecord:
    return MaskRecord(
        id=uuid.uuid4().hex,
        picture_id=stored.id,
        annotator=model or "model",
        segmentation=proposal.segmentation,
        origin="prefilled",
        state="proposed",
        rank=rank,
        prompts=proposal.prompts,
        model=model,
        predicted_iou=proposal.predicted_iou,
        stability_score=proposal.stability_score,
    )


def _distinct(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Removes empty masks, and all but the first of masks that show the same object."""
    kept: list[Proposal] = []
    for proposal in proposals:
        new = all(rle_iou(proposal.segmentation, other.segmentation) < SAME_OBJECT for other in kept)
        if new and rle_area(proposal.segmentation):
            kept.append(proposal)
    return kept


class DetectorProposer:
    """Proposes the model's masks for the boxes of a detector.

    Args:
        model: draws the masks.
        detector: path of a checkpoint for `checkpoints.load_detector`.
        name: name of the model and the detector, for `Proposer.name`.
        min_score: boxes of a lower score are left out.
        min_predicted_iou: masks of a lower predicted IoU are left out.
        batch_size: images that pass the detector and the model together.
    """

    def __init__(
        self,
        model: Sam,
        detector: Path,
        name: str,
        *,
        min_score: float = 0.5,
        min_predicted_iou: float = 0.0,
        batch_size: int = 4,
    ) -> None:
        from sam_jax.checkpoints import load_detector
        from sam_jax.everything.box_masks import SamBoxes

        self._detector = load_detector(detector)
        self._segmenter = SamBoxes(model, batch_size=batch_size)
        self._min_score, self._min_predicted_iou, self.batch_size = min_score, min_predicted_iou, batch_size
        self._unused_boxes = self._unused_masks = 0
        self.name = f"{name}, scores from {min_score:g}, predicted IoUs from {min_predicted_iou:g}"

    def propose(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[Proposal]]:
        detected = self._detect(images)
        found = [[e for e in entries if e["score"] >= self._min_score] for entries in detected]
        boxes = [np.array([_corners(entry["bbox"]) for entry in row], float).reshape(-1, 4) for row in found]
        masks = self._segmenter.segment(images, boxes)
        proposals = [
            [
                Proposal(mask["segmentation"], entry["score"], mask["predicted_iou"], None, [_as_prompt(box)])
                for entry, box, mask in zip(*rows, strict=True)
                if mask["predicted_iou"] >= self._min_predicted_iou
            ]
            for rows in zip(found, boxes, masks, strict=True)
        ]
        for proposed, used, entries in zip(proposals, found, detected, strict=True):
            if not proposed:
                self._unused_boxes += len(entries) - len(used)
                self._unused_masks += len(used)
        return proposals

    def describe_empty(self) -> str:
        return (
            f"{self._unused_boxes} boxes have a score below {self._min_score:g}, the masks of {self._unused_masks} a "
            f"predicted IoU below {self._min_predicted_iou:g}"
        )

    def _detect(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[dict[str, Any]]]:
        from sam_jax.detection.results import to_results

        filled = [*images, *[images[-1]] * (self.batch_size - len(images))]  # one program for all batches
        config = self._detector.config
        pixels, sizes = zip(*(fit_image(image, config.encoder.image_size) for image in filled), strict=True)
        detections = jax.device_get(self._detector.detect(np.stack(pixels), np.array(sizes)))
        return [
            to_results(jax.tree.map(lambda x: x[i], detections), image.shape[:2], config, masks=False)  # noqa: B023
            for i, image in enumerate(images)
        ]


class EverythingProposer:
    """Proposes the masks of everything mode that have a high predicted IoU and stability, for want of a detector.

    Args:
        model: draws the masks.
        name: name of the model, for `Proposer.name`.
        min_predicted_iou: masks of a lower predicted IoU are left out; None: the model's own value, else 0.88.
        min_stability: masks of a lower stability score are left out; None: the model's own value, else 0.95.
        stability_offset: distance of the thresholds for the stability score, logits; None: the model's own value, else
            1.
        points_per_side: the grid of prompts has this number of points squared; None: the model's own value, else 32.
    """

    batch_size = 1

    def __init__(
        self,
        model: Sam,
        name: str,
        *,
        min_predicted_iou: float | None = None,
        min_stability: float | None = None,
        stability_offset: float | None = None,
        points_per_side: int | None = None,
    ) -> None:
        from sam_jax.everything.config import MaskGeneratorConfig
        from sam_jax.everything.filter_counts import FilterCounts
        from sam_jax.everything.generator import SamAutomaticMaskGenerator

        base = MaskGeneratorConfig(
            min_mask_region_area=100, drop_small_masks=True, max_mask_area=0.95, output_mode="coco_rle"
        )
        given = {
            "pred_iou_thresh": min_predicted_iou,
            "stability_score_thresh": min_stability,
            "stability_score_offset": stability_offset,
            "points_per_side": points_per_side,
        }
        changes = model.everything.to_fields() | {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(base, **changes)
        self._generator = SamAutomaticMaskGenerator(model, config)
        self._dropped = FilterCounts()
        offset = config.stability_score_offset
        self.name = (
            f"{name}, everything, {config.points_per_side} points a side, predicted IoUs from "
            f"{config.pred_iou_thresh:g}, stability from {config.stability_score_thresh:g}"
            + ("" if offset == base.stability_score_offset else f" between {offset:g} and -{offset:g}")
        )

    def propose(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[Proposal]]:
        return [
            sorted((_as_proposal(record) for record in records), key=lambda proposal: -proposal.score)
            for records in self._generator.generate_batch(images, self._count)
        ]

    def _count(self, _: int, dropped: FilterCounts) -> None:
        self._dropped += dropped

    def describe_empty(self) -> str:
        return self._dropped.describe(self._generator.config)


def _as_proposal(record: dict[str, Any]) -> Proposal:
    ((x, y),) = record["point_coords"]
    prompts: list[Prompt] = [{"type": "point", "x": float(x), "y": float(y), "label": 1}]
    score = float(record["predicted_iou"])
    return Proposal(record["segmentation"], score, score, float(record["stability_score"]), prompts)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _as_prompt(box: np.ndarray) -> Prompt:
    return {"type": "box", **dict(zip(("x0", "y0", "x1", "y1"), box.tolist(), strict=True))}


def open_proposer(store: Store, detector: Path | None, *, everything: bool, **settings: Any) -> Proposer:
    """Loads a project's model and detector, and returns a proposer that uses them.

    Args:
        detector: path of a checkpoint; None means the project's newest detector.
        everything: use everything mode, and no detector.
        settings: keyword arguments of `DetectorProposer` or `EverythingProposer`.

    Raises:
        UserError: the project has no model; or it has no detector, none is given and `everything` is False.
    """
    from sam_jax.checkpoints.hub import load_model

    current, own = current_model(store), current_model(store, "detector")
    if current is None:
        raise UserError(f"{store.folder} has no model; give it one with sam-jax engine init --model")
    if everything:
        return EverythingProposer(load_model(load_name(store, current)), describe(current), **settings)
    if detector is None and own is None:
        raise UserError(
            f"{store.folder} has no detector; train one (sam-jax engine train --detector), give one (--detector), or "
            "take everything mode's confident masks (--from everything)"
        )
    if detector is None:
        assert own is not None
        detector, name = Path(load_name(store, own)), describe(own)
    else:
        name = str(detector)
    return DetectorProposer(load_model(load_name(store, current)), detector, f"{describe(current)}, {name}", **settings)
