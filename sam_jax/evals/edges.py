"""Zero-shot edge detection on BSDS500 from the masks of a promptable segmentation model.

Reference: paper, sections 7.2 and D.2. Where the paper does not say: the NMS threshold is that of automatic mask
generation; masks are ranked by predicted IoU; edge maps have the size of the image; the outer boundary of a mask is one
pixel wide.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sam_jax.bounds import CheckedFields, CountOrNone, Fraction, GridSide, Threads
from sam_jax.checkpoints.hub import EMBEDDED, load_model
from sam_jax.config import ParallelConfig
from sam_jax.data.images import read_image
from sam_jax.errors import EXPECTED_ERRORS, UserError
from sam_jax.evals.bsds import (
    THRESHOLDS,
    find_edge_maps,
    find_ground_truth,
    ods_interval,
    precision_recall,
    score_counts,
    score_folder,
    score_humans,
)
from sam_jax.evals.curves import plot_precision_recall
from sam_jax.evals.edge_baselines import BASELINES
from sam_jax.evals.image_runs import Failures, describe_failures
from sam_jax.evals.intervals import Interval, show_estimate
from sam_jax.evals.report import EvalReport
from sam_jax.files import make_folder, write_atomically
from sam_jax.model import Sam, model_identity
from sam_jax.ops.boxes import box_nms
from sam_jax.ops.edges import Planes, mask_boxes, normalize_edges, strongest_edges, thin_edges
from sam_jax.ops.grids import point_grid
from sam_jax.ops.masks import frame_matrices
from sam_jax.ops.transforms import as_rgb
from sam_jax.parallel.gather import all_gather, shard_by_process, sync_processes
from sam_jax.parallel.start import start_processes
from sam_jax.predictor import embed
from sam_jax.progress import ProgressBar
from sam_jax.prompting.prompts import PROMPT_BUCKETS, Prompt, pack_prompts
from sam_jax.types import FOREGROUND

PUBLISHED = {  # paper, table 3: ODS, OIS, AP, R50
    "Sobel (1968)": (0.539, None, None, None),
    "Canny (1986)": (0.600, 0.640, 0.580, None),
    "Felzenszwalb, Huttenlocher (2004)": (0.610, 0.640, 0.560, None),
    "HED (2015), trained on BSDS500": (0.788, 0.808, 0.840, 0.923),
    "EDTER (2022), trained on BSDS500": (0.840, 0.858, 0.896, 0.930),
    "SAM ViT-H, zero-shot": (0.768, 0.786, 0.794, 0.928),
}
EMBEDDED_NOTE = (
    "sam: the embedded model was trained on the regions of BSDS500's train and val splits: "
    "its figures are in-domain, not zero-shot."
)
HUMAN = "human"


class EdgeDetector(Protocol):
    """Detects edges in images."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Everything the edge maps depend on; maps on disk are only reused if their identity is the same."""
        ...

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        """Returns the soft edge map of an image, 0-1, with non-maximum suppression."""
        ...


@dataclasses.dataclass(frozen=True)
class SamEdges:
    """Detects edges from the masks that a grid of point prompts gives.

    Each point gives three masks, unfiltered except for box NMS. The edge map is the maximum over masks of the Sobel
    gradient of their probabilities, taken on the pixels around each mask, scaled to 0-1, with non-maximum suppression
    across edges. Mask logits stay on the device in low resolution; only boxes and the edge map are copied to the host.

    Example:
        edges = SamEdges(load_model("vit_h")).detect(image)
    """

    name = "sam"

    model: Sam
    points_per_side: int = 16  # points per side of the grid
    box_nms_thresh: float = 0.7  # box IoU above which only the mask with the higher predicted IoU is kept
    masks_at_once: int = 8  # masks that are upscaled to the image's size together

    @property
    def identity(self) -> str:
        settings = (self.points_per_side, self.box_nms_thresh)
        return f"{self.name} {settings} {model_identity(self.model)}"

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        """Returns the soft edge map of an image, 0-1.

        Args:
            image: RGB, 0-255; grey and RGBA images are converted.

        Raises:
            WrongType, UserError: the array is not such an image.
        """
        image = as_rgb(image)
        H, W = image.shape[:2]
        embedding = embed(self.model, [image])
        prompts = [Prompt(point[None], np.array([FOREGROUND])) for point in point_grid(self.points_per_side) * (W, H)]
        logits, iou = [], []
        at_once = PROMPT_BUCKETS[-1]
        for start in range(0, len(prompts), at_once):
            packed = pack_prompts([prompts[start : start + at_once]], [(H, W)], self.model.config)
            prediction = self.model.decode(embedding, packed)
            count = min(at_once, len(prompts) - start)
            logits.append(prediction.low_res_logits[0, :count, 1:])
            iou.append(prediction.iou_predictions[0, :count, 1:])
        side = self.model.config.low_res_size
        masks = jnp.concatenate(logits).astype(jnp.float32).reshape(-1, side, side)
        planes = Planes(*map(jnp.asarray, frame_matrices((H, W), self.model.config)))
        boxes = mask_boxes(masks, planes, at_once=self.masks_at_once)
        kept = box_nms(np.asarray(boxes), np.asarray(jnp.concatenate(iou)).ravel(), self.box_nms_thresh)
        filled = np.pad(kept, (0, len(masks) - len(kept)))
        edges = strongest_edges(masks, filled, len(kept), planes, at_once=self.masks_at_once)
        return np.asarray(thin_edges(normalize_edges(edges)))


@dataclasses.dataclass(frozen=True)
class EdgesConfig(CheckedFields):
    """Options of the edge detection evaluation on BSDS500."""

    data: Path  # folder with images/SPLIT/*.jpg and groundTruth/SPLIT/*.mat
    out: Path = Path("runs/eval_edges")  # folder for the edge maps, the counts and the report
    split: str = "test"  # split of BSDS500: train, val or test
    model: str = "small"  # name of a released model, path of a checkpoint, or OWNER/NAME on the Hugging Face Hub
    methods: tuple[str, ...] = ("sam", "Canny", "Sobel", HUMAN)  # methods to evaluate
    maps: Path | None = None  # folder of edge maps ID.png from another program, scored instead of `methods`
    max_images: CountOrNone = 0  # evaluate only the first images; 0 means all
    points_per_side: GridSide = 16  # points per side of sam's grid
    box_nms_thresh: Fraction = 0.7  # box IoU above which only the mask with the higher predicted IoU is kept
    workers: Threads = 2  # threads that score images
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Detects edges with every method, scores them, and plots the precision-recall curves.

        Edge maps are kept in out/METHOD-HASH/maps and counts in out/METHOD-HASH/counts; neither is computed twice.
        Images whose files cannot be used are left out and named in the report.

        Raises:
            UserError: a method is unknown, edge maps are missing, or no image can be scored.
            MissingFile: images, ground truth or edge maps are not there.
        """
        start_processes(self.parallel)
        ground_truths = find_ground_truth(self.data, self.split)
        ground_truths = dict(list(ground_truths.items())[: self.max_images or None])
        results: dict[str, Any] = {}
        failures: dict[str, Failures] = {}
        for label, counts in self._counts(ground_truths, failures).items():
            precision, recall = precision_recall(counts.sum(0))
            if counts.shape[1] == len(THRESHOLDS):
                scores: dict[str, float | None] = dict(score_counts(counts)._asdict())
            else:  # human boundaries are not soft edges, and so have only an F-measure
                scores = dict(score_counts(counts, np.zeros(1))._asdict())
                scores |= dict.fromkeys(("threshold", "ois", "ap", "r50"))
            curve = {"precision": precision.tolist(), "recall": recall.tolist()}
            intervals = {"ods": ods_interval(counts)}
            results[label] = {"pictures": len(counts), **scores, "intervals": intervals, "curve": curve}
            results[label]["left_out"] = failures[label]
        plot_precision_recall({label: result["curve"] for label, result in results.items()}, self.out / "curves.png")
        title = f"Edges on BSDS500 {self.split}, {len(ground_truths)} images"
        table = edges_table(results, EMBEDDED_NOTE if self.model == EMBEDDED and SamEdges.name in results else "")
        return EvalReport(title, table + describe_failures(failures), results)

    def _counts(self, ground_truths: dict[str, Path], failures: dict[str, Failures]) -> dict[str, np.ndarray]:
        """Returns the counts of each method; its failures are added."""
        if self.maps is not None:
            maps = find_edge_maps(self.maps, list(ground_truths))
            label = self.maps.resolve().name
            out, failures[label] = self.out / label / "counts", {}
            return {label: score_folder(maps, ground_truths, out, failures[label], workers=self.workers, label=label)}
        unknown = sorted(set(self.methods) - {SamEdges.name, HUMAN, *BASELINES})
        if unknown:
            raise UserError(f"unknown methods {unknown}; known are {[SamEdges.name, *BASELINES, HUMAN]}")
        counts = {}
        for method in self.methods:
            bad = failures[method] = {}
            if method == HUMAN:
                counts[method] = score_humans(ground_truths, self.out / method / "counts", bad, workers=self.workers)
                continue
            detector = self._detector(method)
            folder = self.out / f"{method}-{hashlib.sha256(detector.identity.encode()).hexdigest()[:8]}"
            images = {id_: self.data / "images" / self.split / f"{id_}.jpg" for id_ in ground_truths}
            maps = detect_folder(detector, images, folder / "maps", bad)
            counts[method] = score_folder(
                maps, ground_truths, folder / "counts", bad, workers=self.workers, label=f"{method}: score"
            )
        return counts

    def _detector(self, method: str) -> EdgeDetector:
        if method == SamEdges.name:
            return SamEdges(load_model(self.model), self.points_per_side, self.box_nms_thresh)
        return BASELINES[method]()


def detect_folder(detector: EdgeDetector, images: dict[str, Path], out: Path, failures: Failures) -> dict[str, Path]:
    """Writes the edge maps of image files as out/ID.png, 8-bit greyscale as the benchmark expects; keeps existing ones.

    Several processes that see the same folder divide the images among them.

    Args:
        images: file of each image id.
        failures: images that cannot be read are added.

    Returns:
        The edge map file of each other image id.
    """
    make_folder(out)
    maps = {id_: out / f"{id_}.png" for id_ in images}
    todo = [id_ for id_ in shard_by_process(maps) if not maps[id_].exists()]
    mine: Failures = {}
    with sync_processes():
        for id_ in ProgressBar(todo, desc=f"{detector.name}: detect", unit="image"):
            try:
                image = read_image(images[id_])
            except EXPECTED_ERRORS as error:
                mine[id_] = str(error)
                continue
            edges = detector.detect(image)
            file = io.BytesIO()
            Image.fromarray(np.rint(edges * 255).astype(np.uint8)).save(file, "png")
            write_atomically(maps[id_], file.getvalue())
    for part in all_gather(mine):
        failures |= part
    return {id_: path for id_, path in maps.items() if id_ not in failures}


def edges_table(results: dict[str, dict[str, Any]], note: str = "") -> str:
    """Formats a Markdown table of the measured scores, followed by published ones."""
    columns = ("ods", "ois", "ap", "r50")
    lines = ["| method | ODS | OIS | AP | R50 | |", "|---|---|---|---|---|---|"]
    for label, result in results.items():
        cells = _cells([result[c] for c in columns], [result["intervals"].get(c) for c in columns])
        lines.append(f"| {label} | {cells} | measured, {result['pictures']} images |")
    lines += [f"| {label} | {_cells(values, [None] * 4)} | published |" for label, values in PUBLISHED.items()]
    return "\n".join(lines) + "\n" + (f"\n{note}\n" if note else "")


def _cells(values: Iterable[float | None], intervals: Iterable[Interval | None]) -> str:
    return " | ".join(
        show_estimate(value, interval, digits=3) for value, interval in zip(values, intervals, strict=True)
    )
