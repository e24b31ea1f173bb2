"""Zero-shot object proposals: the recall of annotated objects among the best 1000 masks of automatic mask generation.

Reference: paper, sections 7.3 and D.3. Where the paper does not say: matching is class-agnostic, and recall is computed
over all objects of all images together, as in detectron2 (the `lvis` package averages over categories instead); masks
are ranked by the mean of predicted IoU and stability score, by which the paper keeps the best 1000.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

from sam_jax.bounds import Batch, CheckedFields, CountOrNone, GridSide, Threads
from sam_jax.checkpoints.hub import load_model
from sam_jax.config import ParallelConfig
from sam_jax.errors import UserError
from sam_jax.evals.ground_truth import FREQUENCIES, GroundTruth, GroundTruthImage, read_ground_truth
from sam_jax.evals.image_runs import Failures, describe_failures, predict_missing, score_images
from sam_jax.evals.intervals import show_estimate
from sam_jax.evals.mask_scores import RecallCounts, Result, count_found, recall_interval
from sam_jax.evals.proposal_baselines import Felzenszwalb
from sam_jax.evals.report import EvalReport
from sam_jax.evals.result_files import ResultFolder, check_mask_sizes, read_image_results, read_results
from sam_jax.everything.config import PRESETS
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.model import Sam, model_identity
from sam_jax.parallel.start import start_processes

MAX_PROPOSALS = (10, 100, 1000)
SUBSETS = ("all", "small", "medium", "large", *FREQUENCIES.values())
PUBLISHED = {  # paper, table 4: mask AR@1000 on LVIS v1 val, in the order of SUBSETS
    "ViTDet-H": (63.0, 51.7, 80.8, 87.0, 63.1, 63.3, 58.3),
    "SAM ViT-H, single output": (54.9, 42.8, 76.7, 74.4, 54.7, 59.8, 62.0),
    "SAM ViT-H": (59.3, 45.5, 81.6, 86.9, 59.1, 63.9, 65.8),
}


class ProposalMethod(Protocol):
    """Proposes masks of objects in images."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Everything the proposals depend on; those on disk are only reused if their identity is the same."""
        ...

    def propose(self, images: list[UInt8[np.ndarray, "H W 3"]]) -> list[list[Result]]:
        """Returns the masks of each image as RLE with a score, best first."""
        ...


class SamProposals:
    """Proposes masks by automatic mask generation without its filters.

    Args:
        single_output: predict one mask per point, from a grid that is twice as fine (the paper's ablation).
        points_per_side: points per side of the grid; the paper uses 64. Doubled with `single_output`.
        images_per_device: images that each device encodes and decodes together.
    """

    def __init__(
        self,
        model: Sam,
        *,
        single_output: bool = False,
        points_per_side: int = 64,
        images_per_device: int = 1,
    ) -> None:
        self.name = "sam single output" if single_output else "sam"
        preset = PRESETS["proposals_single" if single_output else "proposals"]
        config = dataclasses.replace(
            preset, output_mode="coco_rle", points_per_side=points_per_side * (2 if single_output else 1)
        )
        self.identity = f"{self.name} {config} {model_identity(model)}"
        self._generator = SamAutomaticMaskGenerator(model, config, images_per_device=images_per_device)

    def propose(self, images: list[UInt8[np.ndarray, "H W 3"]]) -> list[list[Result]]:
        return [
            [
                {
                    "segmentation": record["segmentation"],
                    "score": round((record["predicted_iou"] + record["stability_score"]) / 2, 6),
                    "point_coords": record["point_coords"],
                }
                for record in records
            ]
            for records in self._generator.generate_batch(images)
        ]


@dataclasses.dataclass(frozen=True)
class ProposalsConfig(CheckedFields):
    """Options of the object proposal evaluation."""

    annotations: Path  # COCO or LVIS file
    out: Path = Path("runs/eval_proposals")  # folder for the proposals and the report
    images: Path | None = None  # folder of the images; None: the folder of the annotations, or its subfolder `images`
    model: str = "small"  # name of a released model, path of a checkpoint, or OWNER/NAME on the Hugging Face Hub
    methods: tuple[str, ...] = ("sam", "sam single output", "Felzenszwalb")  # proposal methods
    results: Path | None = None  # masks in COCO's result format, scored instead of `methods`
    max_images: CountOrNone = 0  # evaluate only the first images; 0 means all
    points_per_side: GridSide = 64  # points per side of sam's grid; doubled with a single output
    images_per_device: Batch = 1  # images that each device encodes and decodes together
    workers: Threads = 1  # processes that score images; more help from about 1000 images on
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Proposes masks with every method and computes the recall of the annotated objects.

        Proposals are kept in out/METHOD-HASH/IMAGE_ID.json, so that none is computed twice. An image that cannot be
        read, or whose masks have another size, is left out and named in the report.

        Raises:
            UserError: a method is unknown, or annotations or results cannot be used or are of another dataset.
            MissingFile: the annotations or results do not exist.
        """
        start_processes(self.parallel)
        unknown = sorted(set(self.methods) - {"sam", "sam single output", Felzenszwalb.name})
        if unknown:
            raise UserError(f"unknown methods {unknown}; known are sam, sam single output, {Felzenszwalb.name}")
        ground_truth = read_ground_truth(self.annotations, self.images)
        given = None if self.results is None else read_results(self.results, ground_truth, "segmentation")
        ground_truth = ground_truth.take(self.max_images)
        failures: dict[str, Failures] = {}
        results: dict[str, Any] = {}
        for method in self.methods if self.results is None else [self.results.stem]:
            failures[method] = {}
            if given is None:
                tasks = self._propose(method, ground_truth, failures[method])
            else:
                tasks = {
                    gt_image.name: _ProposalsTask(gt_image, given[gt_image.id], ground_truth.frequencies)
                    for gt_image in ground_truth.images.values()
                }
            scored = score_images(_score, tasks, failures[method], workers=self.workers, label=method)
            by_image = [counts for counts, _ in scored]
            recall = RecallCounts.sum(by_image, MAX_PROPOSALS)
            results[method] = {
                "pictures": len(scored),
                "objects": recall.objects,
                "proposals": sum(count for _, count in scored) / len(scored),
                **{subset: recall.average(subset) for subset in SUBSETS},
                "intervals": {
                    subset: {f"AR@{n}": recall_interval(by_image, subset, n) for n in MAX_PROPOSALS}
                    for subset in SUBSETS
                },
                "left_out": failures[method],
            }
        title = f"Proposals on {ground_truth.file.name}, {len(ground_truth.images)} images: mask AR in percent"
        return EvalReport(title, proposals_table(results) + describe_failures(failures, ground_truth.problems), results)

    def _propose(self, method: str, ground_truth: GroundTruth, failures: Failures) -> dict[str, _ProposalsTask]:
        proposer: ProposalMethod
        if method == Felzenszwalb.name:
            proposer = Felzenszwalb()
        else:
            proposer = SamProposals(
                load_model(self.model),
                single_output=method != "sam",
                points_per_side=self.points_per_side,
                images_per_device=self.images_per_device,
            )
        folder = ResultFolder(self.out, method, proposer.identity)
        failures |= predict_missing(
            folder,
            list(ground_truth.images.values()),
            lambda _, images: proposer.propose(images),
            self.images_per_device,
            method,
        )
        return {
            gt_image.name: _ProposalsTask(gt_image, folder.file(gt_image), ground_truth.frequencies)
            for gt_image in ground_truth.images.values()
            if gt_image.name not in failures
        }


class _ProposalsTask(NamedTuple):
    image: GroundTruthImage
    proposals: list[Result] | Path
    frequencies: dict[int, str]


def _score(task: _ProposalsTask) -> tuple[RecallCounts, int]:
    proposals = task.proposals if isinstance(task.proposals, list) else read_image_results(task.proposals)
    check_mask_sizes(proposals, task.image)
    return count_found(task.image.objects(), proposals, task.frequencies, MAX_PROPOSALS), len(proposals)


def proposals_table(results: dict[str, dict[str, Any]]) -> str:
    """Formats a Markdown table: AR@1000 of each subset, AR@10 and AR@100 of all; measured, then published."""
    columns = [f"{subset} @1000" for subset in SUBSETS] + ["all @10", "all @100"]
    lines = [f"| method | {' | '.join(columns)} | masks | |", "|---" * (len(columns) + 3) + "|"]
    for method, result in results.items():
        shown = [(subset, "AR@1000") for subset in SUBSETS] + [("all", "AR@10"), ("all", "AR@100")]
        intervals = result["intervals"]
        cells = " | ".join(
            show_estimate(result[subset][name], intervals[subset][name], factor=100) for subset, name in shown
        )
        lines.append(f"| {method} | {cells} | {result['proposals']:.0f} | measured, {result['pictures']} images |")
    for method, published in PUBLISHED.items():
        cells = " | ".join([*(f"{value:.1f}" for value in published), "", ""])
        lines.append(f"| {method} | {cells} | | published, LVIS v1 val |")
    return "\n".join(lines) + "\n"
