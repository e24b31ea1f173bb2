"""`sam-jax detect`: objects found by a ViTDet detector."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from sam_jax.bounds import Batch, CheckedFields, Fraction
from sam_jax.commands.results import print_failures


@dataclasses.dataclass(frozen=True)
class Detect(CheckedFields):
    """Finds objects with a ViTDet detector and writes them as one COCO result file.

    An entry has image_id, category_id, bbox (x, y, width, height), score and segmentation (run lengths).
    Example: sam-jax detect annotations/instances_val2017.json --model vitdet.safetensors --out boxes.json
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """A COCO-format JSON file, or images and folders, whose entries then have the file's name too."""
    model: Path
    """Detector: ours (.safetensors), or detectron2's ViTDet (.pkl, .pth)."""
    out: Path = Path("detections.json")
    """Result file; replaced when all is done."""
    images: Path | None = None
    """Folder of a JSON file's images, where they are not near it."""
    min_score: Fraction | None = None
    """Objects with a score above this are written; by default as the detector was published (0.05, LVIS 0.02)."""
    batch: Batch = 1
    """Images computed together."""
    boxes_only: bool = False
    """Leave segmentations out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the arithmetic."""

    def run(self) -> int:
        """Writes the objects; returns 1 if some images can't be read."""
        import jax.numpy as jnp

        from sam_jax.checkpoints import load_detector
        from sam_jax.detection.run import detect_images, find_inputs

        inputs = find_inputs(self.inputs, self.images, self.out)
        detector = load_detector(self.model, dtype=jnp.dtype(self.dtype))
        if self.min_score is not None:
            config = dataclasses.replace(detector.config, score_threshold=self.min_score)
            detector = dataclasses.replace(detector, config=config)
        report = detect_images(detector, inputs, self.out, batch_size=self.batch, masks=not self.boxes_only)
        print(f"{report.objects} objects on {report.images} images, in {self.out}")
        if report.images and not report.objects:
            threshold = detector.config.score_threshold
            print(f"no object has a score above {threshold:g}; a lower --min-score lets more through")
        print_failures("not read", report.failures)
        return 1 if report.failures else 0
