"""The images to annotate: found by folder, list or glob on any file system, numbered, and divided into shards.

The list is written once, before the first image is annotated, so a restart sees the same images under the same numbers.
A shard is a range of its lines, so that a worker is sent a few numbers and not ten thousand names.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from sam_jax.data.images import is_image_name, no_images
from sam_jax.engine.automatic.folder import Folder, open_url
from sam_jax.errors import MissingFile, UserError

LIST = "pictures.jsonl"
IMAGES_PER_SHARD = 1000
MAX_ID = 10**10  # ids of masks, 100,000 for each image, must be exact in the double precision of JSON


class ListedImage(NamedTuple):
    """A line of the list of images."""

    id: int  # as in SA-1B: the image's files are sa_<id>.jpg and sa_<id>.json
    name: str  # path relative to the input in which the image was found
    url: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """The images of one tar, as a range of bytes of the list."""

    number: int
    start: int  # first byte
    end: int  # byte after the last
    count: int  # images

    @property
    def tar(self) -> str:
        return f"sa_{self.number:06d}.tar"

    @property
    def report(self) -> str:
        return f"reports/{self.number:06d}.json"

    def read_images(self, out: Folder) -> list[ListedImage]:
        """Reads the shard's lines of the list."""
        return [ListedImage(**json.loads(line)) for line in out.read(LIST, self.start, self.end).splitlines()]


def find_images(inputs: Sequence[str], out: Folder) -> list[ListedImage]:
    """Finds all images of the inputs, sorts them by name and numbers them.

    Args:
        inputs: each an image, a folder (searched with all folders below it), a text file with a path or URL per line
            (relative to the file), or a glob; local or at a URL.
        out: folder of the results, which is not searched.

    Raises:
        MissingFile: an input does not exist.
        UserError: there are no images.
    """
    found = {url: name for given in inputs for name, url in _find(given) if not url.startswith(f"{out.url}/")}
    if not found:
        raise no_images(*inputs)
    ordered = sorted((name, url) for url, name in found.items())
    return [ListedImage(id, *entry) for id, entry in zip(_ids([name for name, _ in ordered]), ordered, strict=True)]


def write_list(out: Folder, images: Iterable[ListedImage]) -> None:
    """Writes the list of images, one JSON object per line."""
    with out.open_to_write(LIST) as file:
        for listed in images:
            file.write(json.dumps(listed._asdict()).encode() + b"\n")


def read_shards(out: Folder, number: int | None) -> list[Shard]:
    """Divides the lines of the list into shards of equal size, in order.

    Args:
        number: number of shards; None means one per `IMAGES_PER_SHARD` images.

    Raises:
        UserError: there are more shards than images.
    """
    with out.open_to_read(LIST) as file:
        ends = np.cumsum([0, *map(len, file)])
    count = len(ends) - 1
    number = math.ceil(count / IMAGES_PER_SHARD) if number is None else number
    if not 1 <= number <= count:
        raise UserError(f"expected between 1 and {count} shards, one for each image at most, got {number}")
    cuts = [i * count // number for i in range(number + 1)]
    return [
        Shard(i, int(ends[first]), int(ends[last]), last - first)
        for i, (first, last) in enumerate(itertools.pairwise(cuts))
    ]


def _find(given: str) -> list[tuple[str, str]]:
    """Returns the name and URL of each image of one input."""
    file_system, path = open_url(given)
    if file_system.isdir(path):
        root, files = path, file_system.find(path)
    elif file_system.isfile(path):
        root = path.rpartition("/")[0]
        if not is_image_name(path):
            return _read_lines(given, file_system.cat_file(path), file_system.unstrip_protocol(root))
        files = [path]
    elif re.search(r"[*?\[]", path):
        root = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        files = file_system.glob(path)
    else:
        raise MissingFile(f"no image, folder, list or glob at {given}")
    return [
        (file.removeprefix(root).lstrip("/"), file_system.unstrip_protocol(file))
        for file in files
        if is_image_name(file)
    ]


def _read_lines(given: str, content: bytes, root: str) -> list[tuple[str, str]]:
    """Returns the name and URL of each entry of a list; whether the files exist is found out when they are read."""
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"expected images or a text file with a path per line, {given} is neither") from error
    entries = []
    for line in filter(None, lines):
        absolute = line.startswith("/") or re.match(r"[a-z0-9+.-]+://", line)
        file_system, path = open_url(line if absolute else f"{root}/{line}")
        entries.append((line, file_system.unstrip_protocol(path)))
    return entries


def _ids(names: Sequence[str]) -> Iterable[int]:
    """Returns the numbers in the names if all are distinct and like SA-1B's, sa_123.jpg; else 0, 1, 2, ..."""
    matches = [re.fullmatch(r"sa_(\d+)", PurePosixPath(name).stem) for name in names]
    own = {int(match[1]) for match in matches if match}
    if len(own) == len(names) and max(own) < MAX_ID:
        return [int(match[1]) for match in matches if match]
    return range(len(names))
