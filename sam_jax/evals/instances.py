"""Zero-shot instance segmentation: masks for the boxes of a detector or of the annotations, scored by COCO or LVIS AP.

Reference: paper, sections 7.4 and D.4. Where the paper does not say: the first pass predicts three masks and the second
pass one, and the more confident answer counts; a mask keeps the score of its detection. Annotated boxes have no score,
so the predicted IoU is used; crowds are not prompted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sam_jax.bounds import Batch, Boxes, CheckedFields, CountOrNone, Factor, Fraction, Threads
from sam_jax.checkpoints.hub import load_detector, load_model
from sam_jax.config import ParallelConfig
from sam_jax.detection.run import DetectionInput, detect_images
from sam_jax.errors import UserError
from sam_jax.evals.ground_truth import ANY_CATEGORY, GroundTruth, GroundTruthImage, read_ground_truth, shorten
from sam_jax.evals.image_runs import Failures, describe_failures, predict_missing, score_images
from sam_jax.evals.intervals import mean_interval, show_estimate
from sam_jax.evals.mask_scores import MaskEval, Matches, Result, average_precision, average_precision_interval
from sam_jax.evals.report import EvalReport
from sam_jax.evals.result_files import ResultFolder, check_mask_sizes, read_image_results, read_results
from sam_jax.everything.box_masks import BoxSegmenter, FilledBox, SamBoxes
from sam_jax.files import read_bytes
from sam_jax.ops.rle import rle_area, rle_iou
from sam_jax.parallel.gather import sync_processes
from sam_jax.parallel.start import start_processes
from sam_jax.progress import ProgressBar
from sam_jax.prompting.prompts import Prompt

COCO_MAX_DETECTIONS = (1, 10, 100)  # results per image and category
LVIS_MAX_DETECTIONS = (300,)  # results per image
SAM_METHODS = {  # whether the model is asked twice, whether small boxes are zoomed, and whether masks end at their box
    "sam" + ("" if refine else " one pass") + " zoom" * zoom + " inside" * inside: (refine, zoom, inside)
    for refine, zoom, inside in itertools.product((True, False), (False, True), (False, True))
}
METHODS = (*SAM_METHODS, FilledBox.name)
RELATIVE_SIZES = {  # the part of its image that an object covers, from and below
    "below 0.5 %": (0.0, 0.005),
    "0.5 to 2 %": (0.005, 0.02),
    "2 to 10 %": (0.02, 0.1),
    "above 10 %": (0.1, np.inf),
}
OWN_MASKS = "detector"  # name of the row with the masks of the detector itself
PUBLISHED = {  # paper, table 5: AP, APs, APm, APl
    "ViTDet-H, COCO": (51.0, 32.0, 54.3, 68.9),
    "SAM ViT-H with its boxes, COCO": (46.5, 30.8, 51.0, 61.7),
    "ViTDet-H, LVIS": (46.6, 35.0, 58.0, 66.3),
    "SAM ViT-H with its boxes, LVIS": (44.7, 32.5, 57.6, 65.5),
}


@dataclasses.dataclass(frozen=True)
class InstancesConfig(CheckedFields):
    """Options of the instance segmentation evaluation."""

    annotations: Path  # COCO or LVIS file
    out: Path = Path("runs/eval_instances")  # folder for the masks and the report
    images: Path | None = None  # folder of the images; None: the folder of the annotations, or its subfolder `images`
    boxes: Path | None = None  # detected boxes in COCO's result format; None: the annotated boxes
    detector: Path | None = None  # ViTDet checkpoint that detects the boxes; its own masks are scored too
    class_agnostic: bool = False  # treat all objects as one category
    results: Path | None = None  # masks in COCO's result format, scored instead of `methods`
    model: str = "small"  # name of a released model, path of a checkpoint, or OWNER/NAME on the Hugging Face Hub
    methods: tuple[str, ...] = ("sam", "sam one pass", "box")  # box: the box itself; sam also with " zoom", " inside"
    zoom: Fraction = 0.05  # of " zoom": boxes that cover less of their image than this get an embedding of their own
    margin: Factor = 0.0  # of " inside": how far masks may reach beyond their box at each end, in parts of its sides
    max_boxes: Boxes | None = None  # most boxes per image, by score; None: 100, and 300 for LVIS
    max_images: CountOrNone = 0  # evaluate only the first images; 0 means all
    images_per_batch: Batch = 4  # images that are encoded together
    workers: Threads = 1  # processes that score images; more help from about 1000 images on
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Segments every box with every method and scores the masks.

        Masks are kept in out/METHOD-HASH/IMAGE_ID.json, so that none is computed twice, and merged into
        out/METHOD-HASH.results.json in COCO's result format. An image that cannot be read, or whose masks have another
        size, is left out and named in the report.

        Raises:
            UserError: a method is unknown, or annotations, boxes or results cannot be used or are of another dataset.
            MissingFile: the annotations, boxes or results do not exist.
        """
        start_processes(self.parallel)
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise UserError(f"unknown methods {unknown}; known are {', '.join(METHODS)}")
        if sum(source is not None for source in (self.boxes, self.detector, self.results)) > 1:
            raise UserError("expected one of boxes, detector and results, got more")
        ground_truth = read_ground_truth(self.annotations, self.images)
        if self.class_agnostic:
            ground_truth = ground_truth.as_class_agnostic()
        given: dict[str, dict[int, list[Result]]] = {}  # masks that exist already, by row
        if self.results is not None:
            given[self.results.stem] = read_results(self.results, ground_truth, "segmentation")
        all_images, ground_truth = ground_truth, ground_truth.take(self.max_images)
        file = self.boxes
        if self.detector is not None:
            file = write_detections(self.detector, ground_truth, self.out)
            given[OWN_MASKS] = read_results(file, all_images, "segmentation")
        methods = () if self.results is not None else self.methods
        detected = read_results(file, all_images, "bbox") if file else None
        boxes = self._boxes(ground_truth, detected) if methods else {}
        boxes_digest = hashlib.sha256(b"annotated" if file is None else read_bytes(file)).hexdigest()
        failures: dict[str, Failures] = {}
        results: dict[str, Any] = {}
        for method in (*methods, *given):
            failures[method] = {}
            if method in given:  # all rows are scored on the same images
                failures[method] |= {name: why for others in failures.values() for name, why in others.items()}
                good = [gt_image for gt_image in ground_truth.images.values() if gt_image.name not in failures[method]]
                tasks = {
                    gt_image.name: _InstancesTask(gt_image, given[method][gt_image.id], ground_truth.federated)
                    for gt_image in good
                }
            else:
                tasks = self._segment(method, ground_truth, boxes, boxes_digest, failures[method])
            scored = score_images(_score, tasks, failures[method], workers=self.workers, label=method)
            max_detections = LVIS_MAX_DETECTIONS if ground_truth.federated else COCO_MAX_DETECTIONS
            matches = [matches for matches, _ in scored]
            ious = [ious for _, ious in scored]
            everything = mean_iou(ious)
            results[method] = {
                "pictures": len(scored),
                **average_precision(matches, ground_truth.categories, ground_truth.frequencies, max_detections),
                "mIoU": everything["mIoU"],
                "intervals": {
                    "AP": average_precision_interval(matches, ground_truth.categories),
                    "mIoU": everything["interval"],
                },
                "by_relative_size": {name: mean_iou(ious, *limits) for name, limits in RELATIVE_SIZES.items()},
                "left_out": failures[method],
            }
        source = "masks" if self.results else "annotated boxes" if file is None else f"boxes of {self.detector or file}"
        title = (
            f"Instances on {ground_truth.file.name}, {len(ground_truth.images)} images, {source}: mask AP in percent"
        )
        if self.class_agnostic:
            title += ", categories left aside"
        tables = instances_table(results) + relative_sizes_table(results)
        return EvalReport(title, tables + describe_failures(failures, ground_truth.problems), results)

    def _boxes(self, ground_truth: GroundTruth, detected: dict[int, list[Result]] | None) -> dict[int, list[Result]]:
        """Returns the boxes of each image that can be prompts, best first."""
        most = self.max_boxes or (LVIS_MAX_DETECTIONS if ground_truth.federated else COCO_MAX_DETECTIONS)[-1]
        boxes, outside = {}, 0
        for gt_image in ground_truth.images.values():
            if detected is None:
                rows = [
                    {"category_id": a["category_id"], "prompt_bbox": a["bbox"], "truth_id": a["id"]}
                    for a in gt_image.annotations
                    if not a.get("iscrowd")
                ]
            else:
                rows = [
                    {"category_id": d["category_id"], "prompt_bbox": d["bbox"], "score": d["score"]}
                    for d in detected[gt_image.id][:most]
                ]
            usable = [row for row in rows if _is_valid_prompt(row["prompt_bbox"], gt_image.size)]
            outside += len(rows) - len(usable)
            boxes[gt_image.id] = usable
        if outside:
            ProgressBar.write(
                f"{outside} boxes have no area in their image and are left out: their objects count as missed"
            )
        return boxes

    def _segment(
        self,
        method: str,
        ground_truth: GroundTruth,
        boxes: dict[int, list[Result]],
        boxes_digest: str,
        failures: Failures,
    ) -> dict[str, _InstancesTask]:
        segmenter: BoxSegmenter
        if method == FilledBox.name:
            segmenter = FilledBox()
        else:
            refine, zoom, inside = SAM_METHODS[method]
            segmenter = SamBoxes(
                load_model(self.model),
                refine,
                self.images_per_batch,
                self.zoom if zoom else None,
                self.margin if inside else None,
            )

        def predict(gt_images: list[GroundTruthImage], images: list[np.ndarray]) -> list[list[Result]]:
            asked = [boxes[gt_image.id] for gt_image in gt_images]
            corners = [np.array([_corners(row["prompt_bbox"]) for row in rows]).reshape(-1, 4) for rows in asked]
            return [
                [{"score": mask["predicted_iou"]} | row | mask for row, mask in zip(rows, masks, strict=True)]
                for rows, masks in zip(asked, segmenter.segment(images, corners), strict=True)
            ]

        gt_images = list(ground_truth.images.values())
        identity = f"{segmenter.identity} {boxes_digest} {self.max_boxes} {sorted(ground_truth.categories)}"
        folder = ResultFolder(self.out, method, identity)
        failures |= predict_missing(folder, gt_images, predict, self.images_per_batch, method)
        good = [gt_image for gt_image in gt_images if gt_image.name not in failures]
        if jax.process_index() == 0:
            folder.merge(good)
        return {
            gt_image.name: _InstancesTask(gt_image, folder.file(gt_image), ground_truth.federated) for gt_image in good
        }


def write_detections(detector: Path, ground_truth: GroundTruth, out: Path) -> Path:
    """Detects objects in the images and writes a COCO result file to `out`, unless it is there already.

    Args:
        detector: a checkpoint of sam_jax (.safetensors), or of detectron2's ViTDet (.pkl, .pth).

    Raises:
        FileNotFoundError: the detector does not exist.
        UserError: the detector has other categories than the ground truth.
    """
    model = load_detector(detector)
    config = model.config
    if ANY_CATEGORY not in ground_truth.categories and not set(config.category_ids) <= set(ground_truth.categories):
        raise UserError(
            f"expected a detector of the categories in {ground_truth.file}, {detector} knows "
            f"{shorten(config.category_ids)}; --class-agnostic leaves categories aside"
        )
    content = hashlib.sha256(read_bytes(detector))
    content.update(repr(list(ground_truth.images)).encode())
    file = out / f"detector-{content.hexdigest()[:8]}.json"
    with sync_processes():
        if jax.process_index() == 0 and not file.exists():
            inputs = [
                DetectionInput(gt_image.path, {"image_id": gt_image.id}) for gt_image in ground_truth.images.values()
            ]
            detect_images(model, inputs, file)  # unreadable images are reported by predict_missing
    return file


class _InstancesTask(NamedTuple):
    image: GroundTruthImage
    results: list[Result] | Path
    federated: bool


def _score(task: _InstancesTask) -> tuple[Matches, Float[np.ndarray, "n 2"]]:
    """Returns the matches of an image, and for each mask whose prompt was an object's box its IoU with that object.

    Beside the IoU stands the part of the image that the object covers.
    """
    results = task.results if isinstance(task.results, list) else read_image_results(task.results)
    check_mask_sizes(results, task.image)
    ground_truths = {o["id"]: o["segmentation"] for o in task.image.objects()}
    asked = [(ground_truths[result["truth_id"]], result) for result in results if "truth_id" in result]
    H, W = task.image.size
    ious = [(rle_iou(result["segmentation"], truth), rle_area(truth) / (H * W)) for truth, result in asked]
    max_detections = LVIS_MAX_DETECTIONS if task.federated else COCO_MAX_DETECTIONS
    matches = match_image(task.image, results, max_detections, federated=task.federated)
    return matches, np.array(ious, float).reshape(-1, 2)


def mean_iou(
    images: Sequence[Float[np.ndarray, "n 2"]], smallest: float = 0.0, largest: float = np.inf
) -> dict[str, Any]:
    """Averages the IoU of masks with the objects whose boxes were their prompts.

    Args:
        images: for each image the IoU of each mask, and the part of the image that its object covers.
        smallest: objects that cover less are left out.
        largest: objects that cover this or more are left out.

    Returns:
        Number of `objects`, `mIoU`, 0-1, and its 95 % `interval`; both are None without an object.
    """
    ious = [rows[(rows[:, 1] >= smallest) & (rows[:, 1] < largest), 0] for rows in images]
    sums, counts = [float(rows.sum()) for rows in ious], [len(rows) for rows in ious]
    objects = sum(counts)
    return {
        "objects": objects,
        "mIoU": sum(sums) / objects if objects else None,
        "interval": mean_interval(sums, counts),
    }


def match_image(
    gt_image: GroundTruthImage, results: list[Result], max_detections: tuple[int, ...], *, federated: bool
) -> Matches:
    """Matches the results of an image with its objects, for `average_precision`.

    Args:
        results: in any order.
        max_detections: numbers of best results, as in `average_precision`.
        federated: use LVIS's rules: the limit is on all results of the image, whatever their category; results of
            categories that were not verified for this image are dropped; unmatched results of a category that is not
            annotated exhaustively are ignored.
    """
    objects = gt_image.objects()
    if federated:
        known = gt_image.negative_categories | {o["category_id"] for o in objects}
        best = sorted(results, key=lambda result: -result["score"])[: max_detections[-1]]
        results = [result for result in best if result["category_id"] in known]
    return MaskEval(max_detections, gt_image.not_exhaustive_categories if federated else ()).match(objects, results)


def _corners(bbox: list[float]) -> tuple[float, float, float, float]:
    x, y, w, h = bbox
    return x, y, x + w, y + h


def _is_valid_prompt(bbox: list[float], size: tuple[int, int]) -> bool:
    try:
        Prompt(box=np.array(_corners(bbox))).check(size)
    except UserError:
        return False
    return True


def instances_table(results: dict[str, dict[str, Any]]) -> str:
    """Formats a Markdown table with AP, its variants, and the mIoU for annotated boxes, followed by published AP."""
    columns = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "mIoU")
    lines = [f"| method | {' | '.join(columns)} | |", "|---" * (len(columns) + 2) + "|"]

    def row(method: str, values: dict[str, Any], factor: float, note: str) -> None:
        intervals = values.get("intervals", {})
        cells = [show_estimate(values.get(column), intervals.get(column), factor=factor) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} | {note} |")

    for method, result in results.items():
        row(method, result, 100, f"measured, {result['pictures']} images")
    for method, published in PUBLISHED.items():
        row(method, dict(zip(("AP", "APs", "APm", "APl"), published, strict=True)), 1, "published")
    return "\n".join(lines) + "\n"


def relative_sizes_table(results: dict[str, dict[str, Any]]) -> str:
    """Formats a Markdown table of mIoU by the part of the image that an object covers; '' without annotated boxes."""
    rows = {method: result["by_relative_size"] for method, result in results.items() if result["mIoU"] is not None}
    if not rows:
        return ""
    counts = {name: value["objects"] for name, value in next(iter(rows.values())).items()}
    head = " | ".join(f"{name} of the image ({count})" for name, count in counts.items())
    lines = [f"| mIoU of objects | {head} |", "|---" * (len(counts) + 1) + "|"]
    for method, by_size in rows.items():
        cells = [show_estimate(value["mIoU"], value["interval"], factor=100) for value in by_size.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"
