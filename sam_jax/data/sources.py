"""Opens sources of examples, given a path and a format."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from sam_jax.config import DataConfig, DataFormat, LabelValues
from sam_jax.data.coco import CocoSource, find_coco_files
from sam_jax.data.examples import Example, Source
from sam_jax.data.folders import LabelSource, MaskSource, find_folders
from sam_jax.data.prepared import PreparedSource, find_prepared, splits_of
from sam_jax.data.sa1b import Sa1bSource, find_sa1b, warn_if_unfinished
from sam_jax.data.training_sets import TRAINING_SETS, read_training_sets, repeat_by_weight, split_validation
from sam_jax.errors import BadRecord, MissingFile, UserError

logger = logging.getLogger(__name__)

VALIDATION_EVERY = 20  # images, of a source that has no validation split
VALIDATION_MOST = 1000
LOOKED_FOR = """
  named      folders of this project's own sets: {named}
  prepared   dataset_info.json here or below, as `sam-jax prepare` writes it
  sa1b       tar files, or images with a JSON of masks of the same name beside each
  coco       a JSON file, or a folder with annotations.json, instances*.json, annotations/*.json or
             _annotations.coco.json (here or in train/, valid/; annotations.json too), and the images beside it, in
             images/ or train2017/
  labels     images/ and labels/ (or masks/), with a map of object numbers for each image
  masks      images/ and masks/, with a folder of black and white masks for each image; or IMAGE.masks folders"""


@dataclasses.dataclass(frozen=True)
class Subset:
    """Gives the examples at some positions of a source."""

    source: Source
    positions: range | Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.positions[index]]


@dataclasses.dataclass(frozen=True)
class Chain:
    """Gives the examples of several sources, one source after the other."""

    sources: tuple[Source, ...]

    @property
    def problems(self) -> list[BadRecord]:
        """Returns what the sources have left out."""
        return [problem for source in self.sources for problem in getattr(source, "problems", ())]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Example:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def open_source(config: DataConfig) -> tuple[Source, Source]:
    """Opens the (training, validation) splits of a config; without a validation split some images are held out.

    Raises:
        MissingFile, UserError: no format fits what is at the path; says what was looked for.
        MissingPackage: a package is missing that the format needs.
    """
    path = config.path
    if path is None:
        raise UserError("expected the folder or file of the data to train on; say where it is with --data.path")
    format = detect_format(path, config.format, config.images, config.datasets)
    if format == "named":
        examples, kept = split_validation(read_training_sets(path, config.datasets))
        return repeat_by_weight(examples, config.datasets, config.dataset_weights), kept
    splits = open_splits(path, format, config.images, config.label_values)
    train = splits["train"]
    if "validation" in splits:
        return train, splits["validation"]
    every = max(VALIDATION_EVERY, len(train) // VALIDATION_MOST)
    if len(train) < 2:
        raise UserError(f"expected at least 2 images in {path}, to train on and to validate; got {len(train)}")
    held_out = range(0, len(train), every)
    return Subset(train, _AllBut(len(train), every)), Subset(train, held_out)


@dataclasses.dataclass(frozen=True)
class _AllBut(Sequence[int]):
    """The numbers 0..length-1 without the multiples of `every`."""

    length: int
    every: int

    def __len__(self) -> int:
        return self.length - len(range(0, self.length, self.every))

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        block, rest = divmod(index, self.every - 1)
        return block * self.every + rest + 1


def detect_format(path: Path, format: DataFormat, images: Path | None, datasets: Sequence[str] = ()) -> DataFormat:
    """Returns the format of the data at a path: the one that is given, or with `auto` the first that fits.

    Raises:
        MissingFile, UserError: nothing is there, or nothing of a known format.
    """
    if not path.exists():
        raise MissingFile(f"expected data at {path.resolve()}; say where it is with --data.path")
    if format != "auto":
        return format
    if path.is_file():
        if path.suffix.lower() == ".tar":
            return "sa1b"
        if path.suffix.lower() == ".json":
            return "coco"
        raise UserError(f"expected a folder, a tar or a COCO-format JSON, got {path}")
    for known in _fitting(path, images, datasets):
        return known
    raise UserError(f"found no images with masks in {path.resolve()}; looked for{_looked_for()}")


def _looked_for() -> str:
    return LOOKED_FOR.format(named=", ".join(sorted(TRAINING_SETS)))


def _fitting(path: Path, images: Path | None, datasets: Sequence[str]) -> Iterator[DataFormat]:
    if any((path / name).is_dir() for name in datasets):
        yield "named"
    if find_prepared(path):
        yield "prepared"
    if any(path.rglob("*.tar")):
        yield "sa1b"
    if any(find_coco_files(path).values()):
        yield "coco"
    folders = find_folders(path, images)
    if folders is not None:
        yield folders[0]
    if find_sa1b(path, images)[1]:
        yield "sa1b"


def open_splits(path: Path, format: DataFormat, images: Path | None, label_values: LabelValues) -> dict[str, Source]:
    """Opens the splits at a path, by name: "train" and, where the data says which images it is, "validation".

    Args:
        format: the format of the data; neither auto nor named.

    Raises:
        MissingFile, UserError: the data is not of that format, or holds no record.
    """
    splits: dict[str, Source]
    if format == "prepared":
        folders = find_prepared(path)
        if len(folders) != 1:
            raise UserError(
                f"expected one prepared data set (a dataset_info.json) in {path}, found {len(folders)}: "
                f"{', '.join(map(str, folders))}; give the path of one"
            )
        splits = {split: PreparedSource(folders[0], split) for split in splits_of(folders[0])}
    elif format == "sa1b":
        warn_if_unfinished(path)
        tars, pairs = find_sa1b(path, images)
        released = Sa1bSource(tars, pairs, progress=True)
        for problem in released.problems:
            logger.warning("left out: %s", problem)
        splits = {"train": released}
    elif format == "coco":
        files = {"train": [path]} if path.is_file() else find_coco_files(path)
        if not files["train"] and files.get("validation"):
            files = {"train": files["validation"]}
        splits = {
            name: Chain(tuple(CocoSource(file, images, path.stem) for file in part))
            for name, part in files.items()
            if part
        }
    else:
        found = find_folders(path, images)
        if found is None or found[0] != format:
            raise UserError(f"found no {format} in {path}; looked for{_looked_for()}")
        _, image_folder, below = found
        source = (
            LabelSource(image_folder, below, label_values) if format == "labels" else MaskSource(image_folder, below)
        )
        splits = {"train": source}
    if "train" not in splits or not len(splits["train"]):
        raise UserError(f"found no image with masks in {path} ({format}); looked for{_looked_for()}")
    return splits
