"""Reads layouts whose masks are outlines or run lengths in JSON: COCO's, that of videos, and annotation tools'."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sam_jax.data.coco import CocoSource, Entry, image_name
from sam_jax.data.examples import Example, Source
from sam_jax.data.segmentations import read_mask
from sam_jax.data.sources import Chain
from sam_jax.data.zero_shot.maps import find_files
from sam_jax.errors import UserError, decoding
from sam_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class CocoFiles:
    """A layout of COCO-format files.

    Args:
        files: pairs of a pattern of files, and the folder of their images seen from the file's folder; None: one of
            the usual ones.
        file_name: returns an image's path in its folder, given its entry of `images`.
    """

    files: tuple[tuple[str, str | None], ...]
    file_name: Callable[[Entry], str] = image_name

    def open(self, root: Path, dataset: str) -> Source:
        """Opens the data set in a folder.

        Raises:
            MissingFile, UserError: there is no such file, or it is not COCO-format JSON.
        """
        sources: list[Source] = [
            CocoSource(
                file,
                None if folder is None else Path(os.path.normpath(file.parent / folder)),
                dataset,
                min_area=0,  # those who use empty masks tell of them
                file_name=self.file_name,
            )
            for pattern, folder in self.files
            for file in find_files(root, pattern)
        ]
        return Chain(tuple(sources))


@dataclasses.dataclass(frozen=True)
class _Item:
    path: Path
    size: tuple[int, int] | None  # (h, w); None: the image's
    segmentations: tuple[Any, ...]  # in any of COCO's forms


@dataclasses.dataclass(frozen=True)
class _ItemSource:
    dataset: str
    items: tuple[_Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        item = self.items[index]
        size = item.size or image_size(item.path)
        masks = tuple(read_mask(segmentation, size, str(item.path))[0] for segmentation in item.segmentations)
        return Example(item.path, size, masks, self.dataset)


def image_size(path: Path) -> tuple[int, int]:
    """Returns the size (h, w) of an image, without decoding it.

    Raises:
        BadRecord: the file is no image.
    """
    with decoding(path), Image.open(path) as file:
        return file.height, file.width


@dataclasses.dataclass(frozen=True)
class CocoVideos:
    """A layout in YouTube-VIS's format: each object has a mask, or none, in every frame of its video.

    Args:
        file: path of the annotations in the folder of the data set.
        frames: folder to which `file_names` are relative.
    """

    file: str
    frames: str

    def open(self, root: Path, dataset: str) -> Source:
        """Opens the data set in a folder.

        Raises:
            MissingFile, UserError: there is no such file, or it is not of that format.
        """
        (file,) = find_files(root, self.file)
        content = read_json(file)
        try:
            frames: dict[tuple[Any, int], list] = {}
            for annotation in content["annotations"]:
                for number, segmentation in enumerate(annotation["segmentations"]):
                    if segmentation and not annotation.get("iscrowd"):
                        frames.setdefault((annotation["video_id"], number), []).append(segmentation)
            items = [
                _Item(root / self.frames / name, (video["height"], video["width"]), tuple(frames[video["id"], number]))
                for video in content["videos"]
                for number, name in enumerate(video["file_names"])
                if (video["id"], number) in frames
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"expected YouTube-VIS's format in {file}: videos with id, height, width and file_names, annotations "
                f"with video_id and segmentations; got {type(error).__name__} {error}"
            ) from error
        return _ItemSource(dataset, tuple(items))


Outlines = Iterable[tuple[str, list]]
"""(path of an image, its objects, each a list of polygons x, y, x, y, ...)."""


@dataclasses.dataclass(frozen=True)
class PolygonFiles:
    """A layout of JSON files of an annotation tool.

    Args:
        files: pairs of a pattern of files, and the folder of their images in the folder of the data set.
        parse: yields the outlines of a file, given its content and path.
    """

    files: tuple[tuple[str, str], ...]
    parse: Callable[[Any, Path], Outlines]

    def open(self, root: Path, dataset: str) -> Source:
        """Opens the data set in a folder.

        Raises:
            MissingFile, UserError: there is no such file, or it is not of that format.
        """
        items = []
        for pattern, folder in self.files:
            for file in find_files(root, pattern):
                content = read_json(file)
                try:
                    outlines = list(self.parse(content, file))
                except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                    raise UserError(
                        f"expected outlines in {file} as {self.parse.__name__} takes them: "
                        f"{type(error).__name__} {error}"
                    ) from error
                items += [_Item(root / folder / name, None, tuple(objects)) for name, objects in outlines if objects]
        return _ItemSource(dataset, tuple(items))


def via_polygons(content: Any, file: Path) -> Iterator[tuple[str, list]]:
    """Yields VGG Image Annotator's polygons: an entry per image with `filename` and `regions`, a list or numbered."""
    for entry in content.values():
        regions = entry["regions"]
        shapes = [r["shape_attributes"] for r in (regions.values() if isinstance(regions, dict) else regions)]
        yield entry["filename"], [[_flat(zip(s["all_points_x"], s["all_points_y"], strict=True))] for s in shapes]


def woodscape_polygons(content: Any, file: Path) -> Iterator[tuple[str, list]]:
    """Yields WoodScape's polygons: a file per image, its name the only key; [x, y] pairs. Void is no object."""
    (entry,) = content.values()
    objects = [a for a in entry["annotation"] if "void" not in [tag.lower() for tag in a.get("tags", [])]]
    yield f"{file.stem}.png", [[_flat(a["segmentation"])] for a in objects]


def visor_polygons(content: Any, file: Path) -> Iterator[tuple[str, list]]:
    """Yields EPIC-KITCHENS VISOR's polygons: a file per video; `segments` are one object's, as [x, y] pairs."""
    for frame in content["video_annotations"]:
        video, name = frame["image"]["video"], frame["image"]["name"]
        yield (
            f"{video.split('_')[0]}/{video}/{name}",
            [[_flat(polygon) for polygon in a["segments"]] for a in frame["annotations"] if a["segments"]],
        )


def _flat(points: Iterable[Any]) -> list[float]:
    return [float(number) for x, y in points for number in (x, y)]
