"""Zero-shot edge detection on BSDS500: a model that learned masks is asked for edges.

Reference: paper, sections 7.2 and D.2. Decisions where it is silent: the threshold of the NMS is that of everything
mode; masks are ranked by predicted IoU; maps have the size of the image; a mask's outer boundary is one pixel wide.
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
from tqdm import tqdm

from sam_jax.checkpoints.hub import load_model
from sam_jax.config import ParallelConfig
from sam_jax.data.images import read_image
from sam_jax.errors import UserError
from sam_jax.evals.bsds import (
    THRESHOLDS,
    find_edge_maps,
    find_ground_truth,
    precision_recall,
    score_counts,
    score_folder,
    score_humans,
)
from sam_jax.evals.curves import plot_precision_recall
from sam_jax.evals.edge_baselines import BASELINES
from sam_jax.evals.report import EvalReport
from sam_jax.files import write_atomically
from sam_jax.model import Sam, model_identity
from sam_jax.ops.boxes import box_nms
from sam_jax.ops.edges import Planes, mask_boxes, normalize_edges, strongest_edges, thin_edges
from sam_jax.ops.grids import point_grid
from sam_jax.ops.masks import frame_matrices
from sam_jax.ops.transforms import as_rgb
from sam_jax.parallel.gather import shard_by_process, sync_processes
from sam_jax.parallel.start import start_processes
from sam_jax.predictor import embed
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
TINY_NOTE = (
    "sam: the embedded model was trained on the regions of BSDS500's train and val parts: "
    "its figures are in-domain, not zero-shot."
)
HUMAN = "human"


class EdgeDetector(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """What the maps depend on: maps of another identity are not used again."""
        ...

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        """A soft edge map of one image, 0-1, thinned."""
        ...


@dataclasses.dataclass(frozen=True)
class SamEdges:
    """Edges from masks: where the probabilities of masks, prompted with a grid of points, change at their boundaries.

    Three masks per point without any filter; duplicates removed by their boxes; of each mask the Sobel gradient of its
    probabilities on the pixels around it; the maximum over masks, scaled to 0-1 and thinned across edges. The logits of
    all masks stay on the device, at the size that the model gives them; only their boxes and the map leave it.

    Example:
        edges = SamEdges(load_model("vit_h")).detect(image)
    """

    name = "sam"

    model: Sam
    points_per_side: int = 16
    box_nms_thresh: float = 0.7  # of two masks whose boxes overlap more, that of higher predicted IoU stays
    masks_at_once: int = 8  # brought to full size together

    @property
    def identity(self) -> str:
        settings = (self.points_per_side, self.box_nms_thresh)
        return f"{self.name} {settings} {model_identity(self.model)}"

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        """A soft edge map of an image, 0-1.

        Args:
            image: RGB, 0-255; grey and RGBA are taken too.

        Raises:
            TypeError, ValueError: not such an image.
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
class EdgesConfig:
    """What `eval.py` measures."""

    out: Path = Path("runs/eval_edges")  # folder of the edge maps, the counts and the report
    data: Path = Path("../shared/data/bsds500")  # folder with images/SPLIT/*.jpg and groundTruth/SPLIT/*.mat
    split: str = "test"
    model: str = "tiny"  # name or path of a checkpoint
    methods: tuple[str, ...] = ("sam", "Canny", "Sobel", HUMAN)
    maps: Path | None = None  # a folder of edge maps ID.png made elsewhere, scored in place of `methods`
    max_images: int = 0  # the first ones; 0 means all
    points_per_side: int = 16  # of the grid
    box_nms_thresh: float = 0.7  # of two masks whose boxes overlap more, that of higher predicted IoU stays
    workers: int = 2  # images scored at a time, in threads
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # who shares the images

    def evaluate(self) -> EvalReport:
        """Detects edges with every method, scores them, and draws the precision-recall curves.

        Maps go to out/METHOD-IDENTITY/maps and counts beside them; neither is computed twice.

        Raises:
            ValueError: an unknown method, a bad map or ground truth.
            FileNotFoundError: no images, ground truth or maps.
        """
        start_processes(self.parallel)
        ground_truths = find_ground_truth(self.data, self.split)
        ground_truths = dict(list(ground_truths.items())[: self.max_images or None])
        results: dict[str, Any] = {}
        for label, counts in self._counts(ground_truths).items():
            precision, recall = precision_recall(counts.sum(0))
            if counts.shape[1] == len(THRESHOLDS):
                scores: dict[str, float | None] = dict(score_counts(counts)._asdict())
            else:  # people give no soft edges, and so have no more than an F
                scores = dict(score_counts(counts, np.zeros(1))._asdict())
                scores |= dict.fromkeys(("threshold", "ois", "ap", "r50"))
            curve = {"precision": precision.tolist(), "recall": recall.tolist()}
            results[label] = {"pictures": len(counts), **scores, "curve": curve}
        plot_precision_recall({label: result["curve"] for label, result in results.items()}, self.out / "curves.png")
        title = f"Edges on BSDS500 {self.split}, {len(ground_truths)} images"
        return EvalReport(
            title, edges_table(results, TINY_NOTE if self.model == "tiny" and SamEdges.name in results else ""), results
        )

    def _counts(self, ground_truths: dict[str, Path]) -> dict[str, np.ndarray]:
        if self.maps is not None:
            maps = find_edge_maps(self.maps, list(ground_truths))
            label = self.maps.resolve().name
            return {
                label: score_folder(maps, ground_truths, self.out / label / "counts", workers=self.workers, label=label)
            }
        unknown = sorted(set(self.methods) - {SamEdges.name, HUMAN, *BASELINES})
        if unknown:
            raise UserError(f"unknown methods {unknown}; known are {[SamEdges.name, *BASELINES, HUMAN]}")
        counts = {}
        for method in self.methods:
            if method == HUMAN:
                counts[method] = score_humans(ground_truths, self.out / method / "counts", workers=self.workers)
                continue
            detector = self._detector(method)
            folder = self.out / f"{method}-{hashlib.sha256(detector.identity.encode()).hexdigest()[:8]}"
            images = {id_: self.data / "images" / self.split / f"{id_}.jpg" for id_ in ground_truths}
            maps = detect_folder(detector, images, folder / "maps")
            counts[method] = score_folder(
                maps, ground_truths, folder / "counts", workers=self.workers, label=f"{method}: score"
            )
        return counts

    def _detector(self, method: str) -> EdgeDetector:
        if method == SamEdges.name:
            return SamEdges(load_model(self.model), self.points_per_side, self.box_nms_thresh)
        return BASELINES[method]()


def detect_folder(detector: EdgeDetector, images: dict[str, Path], out: Path) -> dict[str, Path]:
    """Edge maps of image files as out/ID.png, grey, 8 bits, as the benchmark takes them; those there are kept.

    Several processes, which see the same folder, share the images.

    Args:
        images: id -> image.

    Returns:
        id -> map.

    Raises:
        FileNotFoundError, ValueError: an image that is missing or bad.
    """
    out.mkdir(parents=True, exist_ok=True)
    maps = {id_: out / f"{id_}.png" for id_ in images}
    todo = [id_ for id_ in shard_by_process(maps) if not maps[id_].exists()]
    with sync_processes():
        for id_ in tqdm(todo, desc=f"{detector.name}: detect", unit="image"):
            edges = detector.detect(read_image(images[id_]))
            file = io.BytesIO()
            Image.fromarray(np.rint(edges * 255).astype(np.uint8)).save(file, "png")
            write_atomically(maps[id_], file.getvalue())
    return maps


def edges_table(results: dict[str, dict[str, Any]], note: str = "") -> str:
    """A Markdown table of what was measured, and below it what was published."""
    columns = ("ods", "ois", "ap", "r50")
    lines = ["| method | ODS | OIS | AP | R50 | |", "|---|---|---|---|---|---|"]
    for label, result in results.items():
        lines.append(f"| {label} | {_cells(result[c] for c in columns)} | measured, {result['pictures']} images |")
    lines += [f"| {label} | {_cells(values)} | published |" for label, values in PUBLISHED.items()]
    return "\n".join(lines) + "\n" + (f"\n{note}\n" if note else "")


def _cells(values: Iterable[float | None]) -> str:
    return " | ".join("" if value is None else f"{value:.3f}" for value in values)
