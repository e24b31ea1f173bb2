"""Runs a detector over many images: images or a COCO-format set in, one COCO result file out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sam_jax.data.coco import NAME, image_name, locate_image, read_coco_file
from sam_jax.data.images import READER_THREADS, find_images, read_batches, read_image
from sam_jax.detection.model import Detector
from sam_jax.detection.results import to_results
from sam_jax.errors import UserError
from sam_jax.files import make_folder, open_to_write, replacing
from sam_jax.ops.transforms import fit_image
from sam_jax.progress import ProgressBar


class DetectionInput(NamedTuple):
    """An image to find objects on, and what identifies it in the result file."""

    path: Path
    labels: dict[str, Any]  # image_id, and the file's name where no annotation file has it


class FittedImage(NamedTuple):
    """An image in the input frame."""

    size: tuple[int, int]  # (H, W) of the original
    pixels: np.ndarray
    input_size: tuple[int, int]


@dataclasses.dataclass
class DetectionReport:
    """How many images and objects a run has written, and which images it has left out."""

    images: int = 0
    objects: int = 0
    failures: dict[Path, str] = dataclasses.field(default_factory=dict)  # images that can't be read, and why


def find_inputs(inputs: Sequence[Path], images: Path | None, out: Path) -> list[DetectionInput]:
    """Finds the images of one COCO-format JSON file; or images, and those in folders, with ids made from their names.

    Args:
        images: folder of a JSON file's images; None: looked for near it.
        out: the result file.

    Raises:
        MissingFile, UserError: nothing is there, it is not COCO-format JSON, or there are no images.
    """
    if not any(path.suffix.lower() == ".json" for path in inputs):
        image_files = find_images(inputs, out)
        return [DetectionInput(p.path, {"image_id": p.image_id, "file_name": str(p.name)}) for p in image_files]
    if len(inputs) != 1:
        raise UserError(f"expected one COCO-format JSON file, or images and folders, got {list(map(str, inputs))}")
    (file,) = inputs
    content = read_coco_file(file, {"images": ("id", NAME)})
    if not content.images:
        raise UserError(f"expected images in {file}, it lists none")
    folder = content.image_folder(images)
    return [
        DetectionInput(locate_image(folder, image_name(image)), {"image_id": image["id"]}) for image in content.images
    ]


def detect_images(
    detector: Detector,
    inputs: Sequence[DetectionInput],
    out: Path,
    *,
    batch_size: int = 1,
    masks: bool = True,
) -> DetectionReport:
    """Writes the objects of all images as one JSON list, in the order of the images, with a progress bar.

    The file appears when all is done, whole. Images that can't be read are left out and reported.

    Args:
        batch_size: images that are computed together.
        masks: write each object's segmentation.

    Raises:
        OSError: the file can't be written.
    """
    make_folder(out.parent)
    report = DetectionReport()

    def read(item: DetectionInput) -> FittedImage:
        image = read_image(item.path)
        return FittedImage(image.shape[:2], *fit_image(image, detector.config.encoder.image_size))

    def fail(item: DetectionInput, reason: str) -> None:
        report.failures[item.path] = reason

    with (
        replacing(out) as temporary,
        open_to_write(temporary) as file,
        ProgressBar(total=len(inputs), unit="image", smoothing=0.1) as bar,
        ThreadPoolExecutor(READER_THREADS) as readers,
    ):
        file.write("[")
        try:
            for batch in read_batches(readers, inputs, read, batch_size, fail):
                frames = [frame for _, frame in batch]
                filled = [*frames, *[frames[-1]] * (batch_size - len(batch))]  # one program for all batches
                pixels, sizes = np.stack([x.pixels for x in filled]), np.array([x.input_size for x in filled])
                found = jax.device_get(detector.detect(pixels, sizes))
                for i, (item, frame) in enumerate(batch):
                    of_image = jax.tree.map(lambda x: x[i], found)  # noqa: B023
                    for entry in to_results(of_image, frame.size, detector.config, masks=masks):
                        file.write(",\n" if report.objects else "\n")
                        file.write(json.dumps(item.labels | entry))
                        report.objects += 1
                report.images += len(batch)
                bar.update(report.images + len(report.failures) - bar.n)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
        bar.update(len(inputs) - bar.n)
        file.write("\n]\n")
    return report
