"""The semi-automatic stage: a model's confident masks on images that nobody has opened yet, for people to complete.

Reference: paper, section 4 (a box detector trained on the first stage's masks, with one generic category).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from sam_jax.data.images import READER_THREADS, read_batches, read_image
from sam_jax.engine.models import current_model, describe, load_name
from sam_jax.engine.records import MaskRecord, Prompt, StoredImage
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.model import Sam
from sam_jax.ops.rle import Rle, rle_area, rle_iou
from sam_jax.ops.transforms import fit_image

SAME_OBJECT = 0.8  # IoU of two masks, from which on the less certain one is left out


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A mask that a model is confident of."""

    segmentation: Rle
    score: float  # what is confident: the detector, or everything mode's predicted IoU
    predicted_iou: float
    stability_score: float | None
    prompts: list[Prompt]


class Proposer(Protocol):
    """Finds objects."""

    @property
    def name(self) -> str:
        """What the masks depend on, in words."""
        ...

    def propose(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[Proposal]]:
        """Of each image what it is confident of, best first. At most `batch_size` images."""
        ...

    @property
    def batch_size(self) -> int: ...


@dataclasses.dataclass
class PrefillReport:
    images: int = 0
    masks: int = 0
    taken: int = 0  # images that somebody opened meanwhile, and that stay as they are
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # images that can't be read, and why


def prefill(store: Store, proposer: Proposer, max_images: int = 0) -> PrefillReport:
    """Puts proposed masks into training images that nobody has opened, with a progress bar.

    What was done by the same proposer is not done again, so a run that was stopped goes on; another proposer's masks
    take the place of what nobody has seen.

    Args:
        max_images: most to do; 0 means all.

    Raises:
        ValueError: the project is in another stage.
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

    with ThreadPoolExecutor(READER_THREADS) as readers, tqdm(total=len(todo), unit="image", desc="pre-filling") as bar:
        for batch in read_batches(readers, todo, read, proposer.batch_size, fail):
            proposals = proposer.propose([image for _, image in batch])
            for (stored, image), found in zip(batch, proposals, strict=True):
                store.set_size(stored.id, image.shape[1], image.shape[0])
                records = [_record(stored, proposal, rank, model) for rank, proposal in enumerate(_distinct(found))]
                if store.prefill(stored.id, records, proposer.name):
                    report.images += 1
                    report.masks += len(records)
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
    """Without empty masks, and of those that are the same object only the first."""
    kept: list[Proposal] = []
    for proposal in proposals:
        new = all(rle_iou(proposal.segmentation, other.segmentation) < SAME_OBJECT for other in kept)
        if new and rle_area(proposal.segmentation):
            kept.append(proposal)
    return kept


class DetectorProposer:
    """Boxes of a detector, and the model's masks for them.

    Args:
        model: that draws the masks.
        detector: checkpoint, as `load_detector` reads it.
        name: of model and detector.
        min_score: boxes below it are left out.
        min_predicted_iou: masks below it likewise.
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
        self.name = f"{name}, scores from {min_score:g}, predicted IoUs from {min_predicted_iou:g}"

    def propose(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[Proposal]]:
        found = [[e for e in entries if e["score"] >= self._min_score] for entries in self._detect(images)]
        boxes = [np.array([_corners(entry["bbox"]) for entry in row], float).reshape(-1, 4) for row in found]
        masks = self._segmenter.segment(images, boxes)
        return [
            [
                Proposal(mask["segmentation"], entry["score"], mask["predicted_iou"], None, [_as_prompt(box)])
                for entry, box, mask in zip(*rows, strict=True)
                if mask["predicted_iou"] >= self._min_predicted_iou
            ]
            for rows in zip(found, boxes, masks, strict=True)
        ]

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
    """Everything mode's masks of high predicted IoU and stability, where there is no detector.

    Args:
        model: that draws the masks.
        name: of the model.
        min_predicted_iou: masks below it are left out.
        min_stability: likewise.
        points_per_side: of the grid.
    """

    batch_size = 1

    def __init__(
        self,
        model: Sam,
        name: str,
        *,
        min_predicted_iou: float = 0.88,
        min_stability: float = 0.95,
        points_per_side: int = 32,
    ) -> None:
        from sam_jax.everything.generator import SamAutomaticMaskGenerator

        self._generator = SamAutomaticMaskGenerator(
            model,
            output_mode="coco_rle",
            points_per_side=points_per_side,
            pred_iou_thresh=min_predicted_iou,
            stability_score_thresh=min_stability,
            min_mask_region_area=100,
            drop_small_masks=True,
            max_mask_area=0.95,
        )
        self.name = (
            f"{name}, everything, {points_per_side} points a side, predicted IoUs from {min_predicted_iou:g}, "
            f"stability from {min_stability:g}"
        )

    def propose(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[list[Proposal]]:
        return [
            sorted((_as_proposal(record) for record in records), key=lambda proposal: -proposal.score)
            for records in self._generator.generate_batch(images)
        ]


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
    """The proposer that a project's model and detector make.

    Args:
        detector: checkpoint; None: the project's newest.
        everything: use everything mode and no detector.
        settings: of `DetectorProposer` or `EverythingProposer`.

    Raises:
        ValueError: there is no model, or no detector and everything mode is not asked for.
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
