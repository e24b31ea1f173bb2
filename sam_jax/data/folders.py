"""Reads folders of images with label maps, or with a folder of binary masks for each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Int
from PIL import Image

from sam_jax.config import LabelValues
from sam_jax.data.examples import Example
from sam_jax.data.images import find_image, image_paths
from sam_jax.errors import BadRecord, UserError, decoding
from sam_jax.ops.rle import Rle, counts_from_mask, encode_rle, rle_from_counts

CHECKED_MAPS = 16  # looked at when a folder is opened
IMAGE_FOLDERS = ("images", "imgs", "JPEGImages")
LABEL_FOLDERS = ("labels", "masks", "SegmentationObject")


class LabelSource:
    """Gives images, each with a map of its name (PNG or TIFF, 8 or 16 bit) whose values are objects; 0 is background.

    Args:
        values: "instances": every value is a mask. "classes": every connected part of a value is one, and 255 is left
            out where there are other values. "auto": as instances, but maps that look like classes are refused.

    Raises:
        UserError: `values` is auto, and some of the first maps look like maps of classes.
    """

    def __init__(self, images: Path, labels: Path, values: LabelValues = "auto") -> None:
        self.values = values
        maps = {path.relative_to(labels).with_suffix(""): path for path in sorted(labels.rglob("*")) if _is_map(path)}
        found = ((find_image(images / stem), path) for stem, path in maps.items())
        self._files = [(image_path, path) for image_path, path in found if image_path is not None]
        if values == "auto":
            _refuse_classes([path for _, path in self._files[:: max(1, len(self._files) // CHECKED_MAPS)]])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        image_path, path = self._files[index]
        labels = read_labels(path)
        regions = _connected(labels) if self.values == "classes" else _values(labels)
        masks = tuple(regions)
        if not masks:
            raise BadRecord("no masks", path)
        return Example(image_path, labels.shape, masks, "labels")


class MaskSource:
    """Gives images, each with a folder of masks (0 outside) under its name, or its name and `.masks`, which is what
    `sam-jax everything --format png` writes.
    """

    def __init__(self, images: Path, masks: Path) -> None:
        folders = sorted({path.parent for path in masks.rglob("*.png") if path.parent != masks})
        found = ((find_image(images / _without_ending(path.relative_to(masks))), path) for path in folders)
        self._files = [(image_path, path) for image_path, path in found if image_path is not None]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        image_path, folder = self._files[index]
        masks, left_out = dict[Path, Rle](), list[BadRecord]()
        for path in sorted(folder.glob("*.png")):
            try:
                mask = read_labels(path) > 0
                if mask.any():
                    masks[path] = encode_rle(mask)
            except BadRecord as error:
                left_out.append(error)
        if not masks:
            raise left_out[0] if left_out else BadRecord("no masks", folder)
        ((size, _),) = Counter(tuple(rle["size"]) for rle in masks.values()).most_common(1)
        others = {path: tuple(rle["size"]) for path, rle in masks.items() if tuple(rle["size"]) != size}
        left_out += [BadRecord("masks of another size", p, f"{s} beside {size} (h, w)") for p, s in others.items()]
        kept = tuple(rle for path, rle in masks.items() if path not in others)
        return Example(image_path, size, kept, "masks", left_out=tuple(left_out))


def read_labels(path: Path) -> Int[np.ndarray, "H W"]:
    """Returns the values of a map with one channel, or of a palette map the positions in the palette.

    Raises:
        BadRecord: it cannot be read, or has colours.
    """
    with decoding(path, "map"), Image.open(path) as file:
        values = np.asarray(file)
    if values.ndim == 3 and values.shape[2] in (2, 3, 4):  # grey stored as colours
        rest = values[..., 1:3] if values.shape[2] > 2 else values[..., :1]
        if (rest == values[..., :1]).all():
            values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise BadRecord(
            "map with colours", path, "expected whole numbers in one channel; turn every colour into a number first"
        )
    return values.astype(np.int32)


def _values(labels: np.ndarray) -> Iterator[dict]:
    for value in np.unique(labels):
        if value:
            yield rle_from_counts(counts_from_mask(labels == value), labels.shape)


def _connected(labels: np.ndarray) -> Iterator[dict]:
    values = np.unique(labels[labels != 0])
    for value in values:
        if value != 255 or len(values) == 1:
            number, parts = cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=8)
            for part in range(1, number):
                yield rle_from_counts(counts_from_mask(parts == part), labels.shape)


def _refuse_classes(paths: list[Path]) -> None:
    """Raises a UserError if maps look like maps of classes.

    Objects are mostly in one piece, classes are not; and 255 far above all others is the void of class maps.
    """
    advice = (
        "; if the values are classes, say --data.label-values classes (sam-jax prepare: --label-values classes): every "
        "connected part of a value becomes a mask and 255 is left out; if they are objects, say instances"
    )
    whole = scattered = 0
    for path in paths:
        try:
            labels = read_labels(path)
        except BadRecord as error:
            if error.reason == "map with colours":
                raise UserError(str(error)) from error
            continue  # counted when it is read
        values = np.unique(labels[labels != 0])
        if len(values) > 1 and values[-1] == 255 and values[-2] < 254:
            raise UserError(f"{path} has the value 255 and below it {values[-2]}, like a map of classes{advice}")
        for value in values:
            areas = np.sort(cv2.connectedComponentsWithStats((labels == value).astype(np.uint8))[2][1:, 4])
            if len(areas) > 1 and areas[-2] >= 0.1 * areas[-1]:
                scattered += 1
            else:
                whole += 1
    if scattered > whole:
        raise UserError(
            f"{scattered} of {scattered + whole} values of the maps in {paths[0].parent} are scattered over several "
            f"regions, like classes{advice}"
        )


def _is_map(path: Path) -> bool:
    return path.suffix.lower() in (".png", ".tif", ".tiff") and path.is_file()


def _without_ending(folder: Path) -> Path:
    return folder.with_suffix("") if folder.suffix == ".masks" else folder


def find_folders(root: Path, images: Path | None) -> tuple[Literal["labels", "masks"], Path, Path] | None:
    """Finds ("labels" or "masks", folder of images, folder of maps or of folders of masks); None: nothing of that kind.

    Looked for: images/ (or imgs/, JPEGImages/, or the given folder) beside labels/ or masks/ (or SegmentationObject/)
    with a map of each image's name or a folder of masks of that name; or folders of masks named image.masks, beside
    the images or in the folder itself.
    """
    for name in LABEL_FOLDERS:
        below = root / name
        image_folder = images or next((root / n for n in IMAGE_FOLDERS if (root / n).is_dir()), root)
        if below.is_dir():
            for stem in (
                p.relative_to(image_folder).with_suffix("") for p in image_paths(image_folder) if below not in p.parents
            ):
                if (below / stem).is_dir() or (below / f"{stem}.masks").is_dir():
                    return "masks", image_folder, below
                if any((below / f"{stem}{ending}").is_file() for ending in (".png", ".PNG", ".tif", ".tiff")):
                    return "labels", image_folder, below
    if any(path.is_dir() for path in root.rglob("*.masks")):
        return "masks", images or root, root
    return None
