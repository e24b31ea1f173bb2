"""Pictures with their masks, as every reader gives them: paths and run lengths, decoded only when asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from jaxtyping import UInt8
from PIL import Image

from sam_jax.ops.rle import Rle, encode_rle, rle_area


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture and its masks, in the original frame."""

    path: Path
    size: tuple[int, int]  # (h, w)
    masks: tuple[Rle, ...]
    dataset: str
    ignore: Rle | None = None  # pixels that no metric counts

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.path.stem}"

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The picture as RGB.

        Raises:
            ValueError: the file cannot be read, or its size is not the one that the masks have.
        """
        try:
            with Image.open(self.path) as file:
                image = np.asarray(file.convert("RGB"))
        except OSError as error:
            raise ValueError(f"expected a picture at {self.path}: {error}") from error
        if image.shape[:2] != self.size:
            raise ValueError(f"{self.path} is {image.shape[:2]} (h, w), but its masks are {self.size}")
        return image


def read_coco(
    annotation_file: Path,
    image_folder: Path,
    dataset: str,
    *,
    keep_image: Callable[[dict], bool] = lambda image: True,
    min_area: int = 1,
) -> list[Example]:
    """Instances of a COCO-format file whose segmentations are RLE or polygons; `iscrowd` ones are left out.

    Args:
        keep_image: says which entries of `images` to take.
        min_area: pixels; smaller masks are left out, and pictures left without a mask too.

    Raises:
        FileNotFoundError, ValueError: no such file; not COCO-format JSON.
    """
    content = _read_json(annotation_file)
    for field in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(field), list):
            raise ValueError(f"expected COCO-format JSON with a list {field!r} in {annotation_file}")
    masks: dict[int, list[Rle]] = {image["id"]: [] for image in content["images"] if keep_image(image)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        image_id = annotation["image_id"]
        if image_id not in masks or annotation.get("iscrowd"):
            continue
        rle = _to_rle(annotation["segmentation"], sizes[image_id])
        if rle_area(rle) >= min_area:
            masks[image_id].append(rle)
    return [
        Example(image_folder / image["file_name"], sizes[image["id"]], tuple(masks[image["id"]]), dataset)
        for image in content["images"]
        if masks.get(image["id"])
    ]


def read_bsds500(root: Path, split: str, *, min_area: int = 100) -> list[Example]:
    """Every region of every annotator of BSDS500. Regions of different annotators overlap: the ambiguity is real.

    Args:
        root: folder with `images/SPLIT/*.jpg` and `groundTruth/SPLIT/*.mat`.
        split: train, val or test.
        min_area: pixels; smaller regions are left out.
    """
    import scipy.io

    paths = sorted((root / "images" / split).glob("*.jpg"))
    if not paths:
        raise FileNotFoundError(f"expected BSDS500 pictures in {root / 'images' / split}, found none")
    examples = []
    for path in paths:
        truth = scipy.io.loadmat(root / "groundTruth" / split / f"{path.stem}.mat")["groundTruth"][0]
        maps = [annotator["Segmentation"][0, 0] for annotator in truth]
        masks = tuple(encode_rle(region) for labels in maps for region in _regions(labels, min_area))
        examples.append(Example(path, maps[0].shape, masks, f"bsds500_{split}"))
    return examples


def read_grabcut(root: Path, bsds500_root: Path) -> list[Example]:
    """The GrabCut objects whose photographs are in BSDS500; value 128 of a mask is to be ignored."""
    splits = _read_json(root / "bsds_split_of_each_image.json")
    examples = []
    for stem, split in sorted(splits.items()):
        with Image.open(root / "masks" / f"{stem}.png") as file:
            values = np.asarray(file.convert("L"))
        path = bsds500_root / "images" / split / f"{stem}.jpg"
        examples.append(
            Example(path, values.shape, (encode_rle(values == 255),), "grabcut20", encode_rle(values == 128))
        )
    return examples


def _regions(labels: np.ndarray, min_area: int) -> Iterator[np.ndarray]:
    for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count >= min_area:
            yield labels == value


def _to_rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    if isinstance(segmentation, list):  # polygons
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):  # uncompressed
        return pycocotools.mask.frPyObjects(segmentation, *size)
    return segmentation


def _read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {path}: {error}") from error
