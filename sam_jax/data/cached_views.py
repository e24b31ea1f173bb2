"""Keeps augmented views of images in ArrayRecord files, as the maps that the frozen part of an encoder made of them.

A record holds a view's maps in float16, its size, and all masks that can be seen in it. Records are numbered: first
comes one view of every image, then another one of every image, and so on; a file holds a range of numbers and is whole
or not there. So what is written need not be written again, by a run that goes on or by one that wants more views.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sam_jax.config import DataConfig
from sam_jax.data.augment import Row, empty_row
from sam_jax.errors import BadRecord, MissingPackage
from sam_jax.files import replacing
from sam_jax.ops.resample import Patch

FILE_BYTES = 2**26  # of the maps in a file, about
MAP = "map_"  # before the name of a map, among the arrays of a record


@dataclasses.dataclass(frozen=True)
class ViewFile:
    """The records of a range of numbers."""

    path: Path
    numbers: range

    def write(self, records: Sequence[bytes]) -> None:
        """Writes the file, which is whole or not there."""
        from array_record.python.array_record_module import ArrayRecordWriter

        assert len(records) == len(self.numbers), "positions tell which view it is"
        with replacing(self.path) as temporary:
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")  # one at a time; floats of noise
            for record in records:
                writer.write(record)
            writer.close()


@dataclasses.dataclass(frozen=True)
class ViewFiles:
    """Where the views of a run lie.

    Attributes:
        views: of each image.
        shapes: (h, w, channels) of each map.
    """

    folder: Path
    images: int
    views: int
    shapes: Mapping[str, tuple[int, int, int]]

    @property
    def view_bytes(self) -> int:
        """Returns the bytes of the maps of one view; masks come to a few per cent of that."""
        return 2 * sum(map(math.prod, self.shapes.values()))

    @property
    def total_bytes(self) -> int:
        """Returns the bytes of all maps."""
        return self.images * self.views * self.view_bytes

    def __iter__(self) -> Iterator[ViewFile]:
        total, step = self.images * self.views, max(1, FILE_BYTES // self.view_bytes)
        for first in range(0, total, step):
            numbers = range(first, min(first + step, total))
            yield ViewFile(self.folder / f"{numbers.start:08d}-{numbers.stop:08d}.array_record", numbers)


class CachedViews:
    """Gives the views that `ViewFiles` hold, as rows of a batch without images. It can be pickled.

    Raises:
        MissingPackage: array_record is not installed.
    """

    def __init__(self, files: ViewFiles) -> None:
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource
        except ImportError as error:
            raise MissingPackage("cached maps are ArrayRecord files; pip install 'sam_jax[train]'") from error
        self.files = files
        self._records = ArrayRecordDataSource([file.path for file in files])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:
        """Returns a view with all its masks.

        Raises:
            BadRecord: the image could not be used, or the record cannot be read.
        """
        try:
            with np.load(io.BytesIO(self._records[index])) as file:
                arrays = dict(file)
        except Exception as error:  # of array_record, or of numpy's reader
            raise BadRecord("record cannot be read", f"{self.files.folder}[{index}]", error) from error
        if "problem" in arrays:
            raise BadRecord(*arrays["problem"].tolist())
        patches, bits = [], np.unpackbits(arrays["bits"]).astype(bool)
        for top, left, h, w in arrays["places"].tolist():
            mask, bits = bits[: h * w], bits[h * w :]
            patches.append(Patch(mask.reshape(h, w), top, left))
        maps = {name: arrays[MAP + name] for name in self.files.shapes}
        h, w = arrays["size"].tolist()
        return Row(None, (h, w), tuple(patches), arrays["boxes"], maps)

    def empty_row(self, image_size: int) -> Row:
        """Returns what stands in place of a view that can't be used."""
        maps = {name: np.zeros(shape, np.float16) for name, shape in self.files.shapes.items()}
        return empty_row(image_size)._replace(image=None, maps=maps)


def encode_row(row: Row) -> bytes:
    """Returns the record of a view, given with its maps; its image is left out."""
    assert row.maps is not None
    bits = [patch.mask.reshape(-1) for patch in row.patches]
    places = [(patch.top, patch.left, *patch.mask.shape) for patch in row.patches]
    return _pack(
        size=np.array(row.size, np.int32),
        bits=np.packbits(np.concatenate([*bits, np.zeros(0, bool)])),
        places=np.array(places, np.int32).reshape(-1, 4),
        boxes=row.boxes,
        **{MAP + name: value for name, value in row.maps.items()},
    )


def encode_problem(problem: BadRecord) -> bytes:
    """Returns the record of an image that cannot be used."""
    return _pack(problem=np.array([problem.reason, problem.where, problem.detail]))


def _pack(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def draw_masks(row: Row, rng: np.random.Generator, config: DataConfig) -> Row:
    """Returns a row with `masks_per_image` of its masks, drawn uniformly."""
    chosen = rng.permutation(len(row.patches))[: config.masks_per_image]
    if config.repeat_masks and len(chosen):
        chosen = np.resize(chosen, config.masks_per_image)
    return row._replace(patches=tuple(row.patches[i] for i in chosen), boxes=row.boxes[chosen])
