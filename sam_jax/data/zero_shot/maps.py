"""Reads layouts whose masks are images: a map of numbers beside each image, or a folder of masks for each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int
from PIL import Image

from sam_jax.data.examples import Example, Source
from sam_jax.data.folders import read_labels
from sam_jax.errors import BadRecord, MissingFile, MissingPackage, decoding
from sam_jax.ops.rle import Rle, encode_rle

Decode = Callable[[Path], Int[np.ndarray, "H W"]]
"""File of a map -> number of the object of each pixel; 0 and below belong to none."""


@dataclasses.dataclass(frozen=True)
class LabelMaps:
    """A layout with a map, or several, beside each image. Every number above 0 is a mask.

    Args:
        images: pattern of the images' paths in the folder of the data set.
        maps: for each map what to replace in an image's path, as (old, new) pairs; the first has to be there, further
            ones need not (the parts of objects).
        decode: how a map's pixels become numbers.
        keep: which numbers are masks.
        connected: every connected part of a number is a mask, and not all of it.
        only: images in whose path this regular expression finds something; None: all.
    """

    images: str
    maps: tuple[tuple[tuple[str, str], ...], ...]
    decode: Decode = read_labels
    keep: Callable[[int], bool] = lambda value: value > 0
    connected: bool = False
    only: str | None = None

    def open(self, root: Path, dataset: str) -> Source:
        """Opens the data set in a folder.

        Raises:
            MissingFile: there is no image, or no map to any.
        """
        paths = find_files(root, self.images, self.only)
        pairs = [(path, [_replace(path, root, changes) for changes in self.maps]) for path in paths]
        if not any(maps[0].is_file() for _, maps in pairs):
            raise MissingFile(f"no maps beside the images {self.images}, such as {pairs[0][1][0]}")
        return _MapSource(self, dataset, tuple((path, tuple(maps)) for path, maps in pairs))


@dataclasses.dataclass(frozen=True)
class _MapSource:
    layout: LabelMaps
    dataset: str
    pairs: tuple[tuple[Path, tuple[Path, ...]], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        path, files = self.pairs[index]
        masks: list[Rle] = []
        size = (0, 0)
        for number, file in enumerate(files):
            if number and not file.is_file():
                continue
            labels = self.layout.decode(file)
            if number and labels.shape != size:
                raise BadRecord("masks of another size", file, f"{labels.shape}, the first map {size} (h, w)")
            size = (labels.shape[0], labels.shape[1])
            masks += map(encode_rle, self._regions(labels))
        return Example(path, size, tuple(masks), self.dataset)

    def _regions(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        for value in np.unique(labels):
            if value > 0 and self.layout.keep(int(value)):
                region = labels == value
                if self.layout.connected:
                    count, parts = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
                    yield from (parts == part for part in range(1, count))
                else:
                    yield region


@dataclasses.dataclass(frozen=True)
class MaskFolders:
    """A layout with a folder of masks for each image, in which every file is one mask.

    Args:
        images: as for `LabelMaps`.
        masks: what to replace in an image's path to get the pattern of its masks, as (regular expression, new).
    """

    images: str
    masks: tuple[str, str]

    def open(self, root: Path, dataset: str) -> Source:
        """Opens the data set in a folder.

        Raises:
            MissingFile: there is no image.
        """
        paths = find_files(root, self.images)
        return _FolderSource(self, root, dataset, tuple(paths))


@dataclasses.dataclass(frozen=True)
class _FolderSource:
    layout: MaskFolders
    root: Path
    dataset: str
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        pattern = re.sub(*self.layout.masks, path.relative_to(self.root).as_posix())
        files = sorted(self.root.glob(pattern))
        if not files:
            raise BadRecord("no masks", path, f"expected them at {pattern}")
        masks = [read_foreground(file) for file in files]
        size = masks[0].shape
        for file, mask in zip(files, masks, strict=True):
            if mask.shape != size:
                raise BadRecord("masks of another size", file, f"{mask.shape} beside {size} (h, w)")
        return Example(path, (size[0], size[1]), tuple(encode_rle(mask > 0) for mask in masks), self.dataset)


def find_files(root: Path, pattern: str, only: str | None = None) -> list[Path]:
    """Finds the files below a folder that a pattern fits, sorted.

    Args:
        only: regular expression; only files in whose path it finds something. None: all.

    Raises:
        MissingFile: there is none.
    """
    paths = sorted(path for path in root.glob(pattern) if path.is_file())
    paths = [path for path in paths if only is None or re.search(only, path.relative_to(root).as_posix())]
    if not paths:
        raise MissingFile(f"no {pattern} in {root}" + (f" whose path has {only}" if only else ""))
    return paths


def _replace(path: Path, root: Path, changes: tuple[tuple[str, str], ...]) -> Path:
    name = path.relative_to(root).as_posix()
    for old, new in changes:
        name = name.replace(old, new)
    return root / name


def read_foreground(path: Path) -> Int[np.ndarray, "H W"]:
    """Returns 1 where any channel of an image (but alpha) is above 0, and else 0.

    Raises:
        BadRecord: it cannot be read.
    """
    pixels = _read(path)
    return np.any(pixels[..., :3] if pixels.ndim == 3 else pixels[..., None], axis=-1).astype(np.int32)


def read_colours(path: Path) -> Int[np.ndarray, "H W"]:
    """Returns a map's colours, each as a number of its own; black is 0."""
    return np.asarray(_read(path, "RGB").astype(np.int32) @ np.array([1, 256, 65536], np.int32))


def read_numbers_or_colours(path: Path) -> Int[np.ndarray, "H W"]:
    """Returns a map's numbers, if it has one channel or a palette, or else every colour as a number."""
    with _opened(path) as file:
        coloured = file.mode in ("RGB", "RGBA")
    return read_colours(path) if coloured else read_labels(path)


def read_blue_channel(path: Path) -> Int[np.ndarray, "H W"]:
    """Returns the numbers of ADE20K's objects: red and green are the class, blue is the object."""
    pixels = _read(path, "RGB").astype(np.int32)
    classes = pixels[..., 0] // 10 * 256 + pixels[..., 1]
    return np.asarray(np.where(pixels[..., 2] > 0, pixels[..., 2] + 256 * classes, 0))


def read_hdf5(path: Path) -> Int[np.ndarray, "H W"]:
    """Returns Hypersim's numbers, the field `dataset` of an HDF5 file; -1 belongs to no object.

    Raises:
        MissingPackage: h5py is not installed.
        BadRecord: it cannot be read.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingPackage("Hypersim's maps are HDF5 files: pip install h5py") from error
    with decoding(path, "map"), h5py.File(path) as file:
        return np.asarray(file["dataset"]).astype(np.int32)


def _opened(path: Path) -> Any:
    with decoding(path, "map"):
        return Image.open(path)


def _read(path: Path, mode: str | None = None) -> np.ndarray:
    with _opened(path) as file, decoding(path, "map"):
        return np.asarray(file.convert(mode) if mode else file)
