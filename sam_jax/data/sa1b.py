"""Reads SA-1B as it is released, and what `sam-jax everything` writes like it: a JSON of masks beside each image."""

from __future__ import annotations

import dataclasses
import logging
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from sam_jax.data.examples import Example, check_rle
from sam_jax.data.images import find_image, is_image_name
from sam_jax.data.segmentations import is_image_size
from sam_jax.errors import BadRecord
from sam_jax.files import parse_json, read_bytes
from sam_jax.progress import ProgressBar

logger = logging.getLogger(__name__)


DATASET = "sa1b"


class Sa1bSource:
    """Gives images that have a JSON of the same name: in tar files, read in place, or in folders.

    Only names and positions are kept; a record's JSON is read when it is asked for.

    Args:
        tars: tar files, not compressed. Images and JSON may lie in folders in them.
        pairs: paths of images and of their JSON, from `pairs_of_folder`.
        progress: show a bar while tar files are listed.

    Attributes:
        problems: records that are left out, because something is missing or cut off.
    """

    def __init__(
        self,
        tars: Sequence[Path] = (),
        pairs: Sequence[tuple[Path, Path]] = (),
        *,
        progress: bool = False,
    ) -> None:
        self.tars, self.pairs = tuple(tars), tuple(pairs)
        self.problems: list[BadRecord] = []
        self._names: list[str] = []  # of the images, in their tar or folder
        spans: list[tuple[int, int, int, int, int]] = []  # tar, then offset and length of image and JSON
        for number, tar in enumerate(ProgressBar(self.tars, "listing", unit="tar", disable=not progress)):
            for name, image, annotation in pairs_of_tar(tar, self.problems):
                self._names.append(name)
                spans.append((number, *image, *annotation))
        self._spans = np.array(spans, np.int64).reshape(-1, 5)

    def __len__(self) -> int:
        return len(self._names) + len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        if index >= len(self._names):
            image, annotation = self.pairs[index - len(self._names)]
            try:
                text = read_bytes(annotation)
            except OSError as error:
                raise BadRecord("JSON cannot be read", annotation, error) from error
            return parse_record(text, Example(image, (0, 0), (), DATASET))
        number, offset, length, json_offset, json_length = self._spans[index].tolist()
        found = Example(self.tars[number], (0, 0), (), DATASET, span=(offset, length), member=self._names[index])
        text = Example(found.path, (0, 0), (), "", span=(json_offset, json_length), member=found.member).read()
        return parse_record(text, found)


def parse_record(text: bytes, image: Example) -> Example:
    """Returns the example of an image and its JSON, with those of the masks that can be read.

    The JSON is {"image": {height, width}, "annotations": [{"segmentation": RLE}, ...]}.

    Args:
        image: the example without size and masks, which come from the JSON.

    Raises:
        BadRecord: the JSON is another one, all its masks are empty, or none can be read.
    """
    content = parse_json(text, image.where)
    try:
        size = (content["image"]["height"], content["image"]["width"])
        annotations = list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise BadRecord(
            "JSON of another kind", image.where, f"expected image and annotations; {type(error).__name__} {error}"
        ) from error
    if not is_image_size(*size):
        raise BadRecord("image without a size", image.where, f"{str(size)[:60]} (h, w)")
    size = int(size[0]), int(size[1])
    kept, left_out = [], []
    for number, annotation in enumerate(annotations):
        where = f"{image.where}, mask {number}"
        try:
            if not isinstance(annotation, dict) or annotation.get("segmentation") is None:
                raise BadRecord("annotation without a segmentation", where)
            if check_rle(annotation["segmentation"], size, where):
                kept.append(annotation["segmentation"])
        except BadRecord as error:
            left_out.append(error)
    if not kept:
        raise left_out[0] if left_out else BadRecord("no masks", image.where)
    return dataclasses.replace(image, size=size, masks=tuple(kept), left_out=tuple(left_out))


class Pair(NamedTuple):
    """An image and its JSON in a tar file: (offset, length) each."""

    name: str
    image: tuple[int, int]
    annotation: tuple[int, int]


def pairs_of_tar(path: Path, problems: list[BadRecord]) -> Iterator[Pair]:
    """Yields the images of a tar file that are there with their JSON, in the order of their positions.

    Args:
        problems: gets the records appended in which something is missing or cut off.
    """
    found_images: dict[str, tuple[str, tuple[int, int]]] = {}
    annotations: dict[str, tuple[int, int]] = {}
    whole = True
    try:
        end = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                hidden = name.name.startswith("._")  # what macOS puts beside each file
                if not member.isfile() or hidden:
                    continue
                span = (member.offset_data, member.size)
                if sum(span) > end:
                    whole = False
                    problems.append(BadRecord("tar cut off", path, f"in {member.name}"))
                elif is_image_name(name):
                    found_images[str(name.with_suffix(""))] = (member.name, span)
                elif name.suffix.lower() == ".json":
                    annotations[str(name.with_suffix(""))] = span
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
    except (tarfile.TarError, OSError, EOFError) as error:
        if whole:
            problems.append(BadRecord("tar cannot be read to its end", path, error))
    for stem, (image, span) in sorted(found_images.items(), key=lambda item: item[1][1]):
        if stem in annotations:
            yield Pair(image, span, annotations.pop(stem))
        else:
            problems.append(BadRecord("image without JSON", f"{path}:{image}"))
    problems.extend(BadRecord("JSON without an image", f"{path}:{stem}.json") for stem in annotations)


def pairs_of_folder(folder: Path, images: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yields (image, JSON) for JSON files below a folder that have an image; images without JSON aren't annotated yet.

    Args:
        images: where the images are, if not beside their JSON files: under the same relative names.
    """
    for annotation in sorted(folder.rglob("*.json")):
        stem = (images or folder) / annotation.relative_to(folder).with_suffix("")
        image = find_image(stem)
        if image is not None:
            yield image, annotation


def warn_if_unfinished(path: Path) -> None:
    """Logs a warning if `sam-jax engine run` has begun to write a folder and not come to the end."""
    if (path / "engine.settings.json").exists() and not (path / "manifest.json").exists():
        logger.warning("`sam-jax engine run` has not finished %s; only what is there is read", path)


def find_sa1b(path: Path, images: Path | None = None) -> tuple[list[Path], list[tuple[Path, Path]]]:
    """Finds (tar files, pairs of an image and its JSON) at a path: a tar, or a folder of tars, or else of pairs."""
    if path.is_file():
        return [path], []
    tars = sorted(tar for tar in path.rglob("*.tar") if not tar.name.startswith("."))
    return tars, [] if tars else list(pairs_of_folder(path, images))
