"""Formats of results of everything mode. A result is one file or folder per image."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sam_jax.data.images import ImageFile
from sam_jax.everything.generator import Record
from sam_jax.files import replacing
from sam_jax.ops.draw import draw_everything
from sam_jax.ops.rle import decode_rle, rle_box


def write_sa1b(path: Path, image_file: ImageFile, image: np.ndarray, records: Sequence[Record]) -> None:
    """JSON as in the SA-1B dataset; annotation ids count within the image."""
    path.write_text(json.dumps(sa1b_content(str(image_file.name), image_file.image_id, image.shape[:2], records)))


def sa1b_content(
    name: str, image_id: int, size: tuple[int, int], records: Sequence[Record], first_id: int = 0
) -> dict[str, Any]:
    """What the JSON of an image of SA-1B holds.

    Args:
        size: (h, w) of the image.
        first_id: of its annotations; the others have the numbers after it.
    """
    annotations = [
        record | {"id": first_id + i, "bbox": _floats(record["bbox"]), "crop_box": _floats(record["crop_box"])}
        for i, record in enumerate(records)
    ]
    return {"image": _image_entry(name, size) | {"image_id": image_id}, "annotations": annotations}


def write_coco(path: Path, image_file: ImageFile, image: np.ndarray, records: Sequence[Record]) -> None:
    """One image's part of the COCO file; ids come with `merge_coco`. Boxes are COCO's: one pixel has width 1."""
    annotations = [
        record | {"bbox": rle_box(record["segmentation"]), "category_id": 1, "iscrowd": 0} for record in records
    ]
    path.write_text(
        json.dumps({"image": _image_entry(str(image_file.name), image.shape[:2]), "annotations": annotations})
    )


def write_png(path: Path, image_file: ImageFile, image: np.ndarray, records: Sequence[Record]) -> None:
    """A folder with a black and white PNG per mask and metadata.csv, as the official command writes."""
    path.mkdir()
    with (path / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"),
                *("predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
            ]
        )
        for i, record in enumerate(records):
            scores = (record["predicted_iou"], record["stability_score"])
            table.writerow(
                [i, record["area"], *record["bbox"], *record["point_coords"][0], *scores, *record["crop_box"]]
            )
            mask = decode_rle(record["segmentation"])
            Image.fromarray(mask.astype(np.uint8) * 255).save(path / f"{i}.png")


def write_overlay(path: Path, image_file: ImageFile, image: np.ndarray, records: Sequence[Record]) -> None:
    """The image with its masks in colours."""
    Image.fromarray(draw_everything(image, [record["segmentation"] for record in records])).save(path, "PNG")


def merge_coco(out: Path, image_files: Sequence[ImageFile]) -> Path:
    """The parts of finished images -> `out/instances.json`, one image after the other."""
    path = out / "instances.json"
    images, next_id = [], 1
    with replacing(path) as temporary, temporary.open("w") as file:
        file.write('{"info": {"description": "masks of sam-jax everything"}, "licenses": [], ')
        file.write('"categories": [{"id": 1, "name": "object"}], "annotations": [')
        for image_id, image_file in enumerate(image_files, start=1):
            part = FORMATS["coco"].target(out, image_file)
            if part.exists():
                content = json.loads(part.read_text())
                images.append({"id": image_id} | content["image"])
                for annotation in content["annotations"]:
                    file.write(",\n" if next_id > 1 else "\n")
                    file.write(json.dumps({"id": next_id, "image_id": image_id} | annotation))
                    next_id += 1
        file.write(f'],\n"images": {json.dumps(images)}}}\n')
    return path


class Format(NamedTuple):
    folder: str  # in the output folder
    suffix: str  # of the file or folder
    write: Callable[[Path, ImageFile, np.ndarray, Sequence[Record]], None]

    def target(self, out: Path, image_file: ImageFile) -> Path:
        return out / self.folder / image_file.name.with_suffix(self.suffix)

    def save(self, out: Path, image_file: ImageFile, image: np.ndarray, records: Sequence[Record]) -> None:
        target = self.target(out, image_file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary:
                self.write(temporary, image_file, image, records)
        except OSError as error:
            raise OSError(
                f"could not write {target}: {error.strerror or error}; finished images are kept, "
                "the same command goes on with the rest"
            ) from error


FORMATS: Mapping[str, Format] = {
    "sa1b": Format("", ".json", write_sa1b),
    "coco": Format("parts", ".json", write_coco),
    "png": Format("", ".masks", write_png),
    "overlay": Format("", ".png", write_overlay),
}


def _image_entry(name: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"file_name": name, "height": size[0], "width": size[1]}


def _floats(numbers: Sequence[float]) -> list[float]:
    return [float(number) for number in numbers]
