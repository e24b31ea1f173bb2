"""Defines images with their masks as every reader gives them: paths and run lengths, decoded only when asked."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sam_jax.data.images import load_image
from sam_jax.errors import BadRecord, MissingFile, UserError, decoding
from sam_jax.files import open_to_read, read_bytes, read_json
from sam_jax.ops.rle import Rle, counts_from_rle, encode_rle
from sam_jax.ops.transforms import pillow_to_rgb, read_orientation


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its masks, in the original frame. The image is a file, or a part of one, or bytes at hand."""

    path: Path
    size: tuple[int, int]  # (h, w)
    masks: tuple[Rle, ...]
    dataset: str
    ignore: Rle | None = None  # pixels that no metric counts
    span: tuple[int, int] | None = None  # (offset, length) of the image's bytes in the file; None: all of it
    encoded: bytes | None = None  # the image's bytes, if they are at hand
    member: str | None = None  # the image's name in a file that holds many
    left_out: tuple[BadRecord, ...] = ()  # what is wrong with each of its masks that is not among `masks`

    @property
    def name(self) -> str:
        return f"{self.dataset}/{Path(self.member or self.path).stem}"

    @property
    def where(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        """Returns the image's file as it is.

        Raises:
            BadRecord: it cannot be read to its end.
        """
        if self.encoded is not None:
            return self.encoded
        offset, length = self.span or (0, -1)
        try:
            with open_to_read(self.path) as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise BadRecord("image cannot be read", self.where, error) from error
        if length > len(data):
            raise BadRecord("cut off", self.where, f"{len(data)} of {length} bytes are there")
        return data

    def pil_image(self) -> Image.Image:
        """Returns the image as RGB, upright by its EXIF orientation, or as it lies if only that has the masks' size.

        Raises:
            BadRecord: it cannot be decoded, or its size is not the one that the masks have.
        """
        image = load_image(io.BytesIO(self.read()), self.where)
        orientation = read_orientation(image)
        size = lying = image.size[::-1]
        if orientation >= 5:
            size = lying[::-1]
        turned = orientation != 1 and (size == self.size or lying != self.size)
        if (size if turned else lying) != self.size:
            raise BadRecord("masks of another size", self.where, f"image {size}, masks {self.size} (h, w)")
        if turned or image.mode != "RGB" or image.has_transparency_data:
            with decoding(self.where):
                image = Image.fromarray(pillow_to_rgb(image, upright=turned))
        return image

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """Returns `pil_image` as an array that may be written to."""
        return np.array(self.pil_image())


class Source(Protocol):
    """Gives examples by position, read when asked for: a list of them, or something that knows where they lie.

    `source[i]` raises `BadRecord` for one that can't be used. Sources can be pickled.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


def check_rle(rle: Rle, size: tuple[int, int], where: object) -> int:
    """Returns the number of pixels of a mask.

    Raises:
        BadRecord: these are not run lengths, or of another size than the image.
    """
    try:
        counts = counts_from_rle(rle)
    except UserError as error:
        raise BadRecord("run lengths cannot be read", where, error) from error
    if tuple(rle["size"]) != tuple(size):
        raise BadRecord("masks of another size", where, f"image {tuple(size)}, mask {tuple(rle['size'])} (h, w)")
    return int(counts[1::2].sum())


def read_bsds500(root: Path, split: str, *, min_area: int = 100) -> list[Example]:
    """Reads every region of every annotator of BSDS500. Regions of different annotators overlap: the ambiguity is real.

    Args:
        root: folder with `images/SPLIT/*.jpg` and `groundTruth/SPLIT/*.mat`.
        split: train, val or test.
        min_area: area of the smallest regions that are taken, pixels.
    """
    import scipy.io

    paths = sorted((root / "images" / split).glob("*.jpg"))
    if not paths:
        raise MissingFile(f"expected BSDS500 images in {root / 'images' / split}, found none")
    examples = []
    for path in paths:
        file = root / "groundTruth" / split / f"{path.stem}.mat"
        content = io.BytesIO(read_bytes(file))
        try:
            truth = scipy.io.loadmat(content)["groundTruth"][0]
            maps = [annotator["Segmentation"][0, 0] for annotator in truth]
        except Exception as error:  # of SciPy's reader, or of other fields
            raise BadRecord("regions cannot be read", file, error) from error
        masks = tuple(encode_rle(region) for labels in maps for region in _regions(labels, min_area))
        examples.append(Example(path, maps[0].shape, masks, f"bsds500_{split}"))
    return examples


def read_grabcut(root: Path, bsds500_root: Path) -> list[Example]:
    """Reads the GrabCut objects whose photographs are in BSDS500; value 128 of a mask is to be ignored."""
    splits = read_json(root / "bsds_split_of_each_image.json")
    examples = []
    for stem, split in sorted(splits.items()):
        mask = root / "masks" / f"{stem}.png"
        content = io.BytesIO(read_bytes(mask))
        with decoding(mask, "mask"), Image.open(content) as file:
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
