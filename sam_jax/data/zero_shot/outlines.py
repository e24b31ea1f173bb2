"""Layouts whose masks are outlines or run lengths in JSON: COCO's, that of videos, and those of annotation tools."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sam_jax.data.coco import CocoSource, Entry, image_name, read_mask
from sam_jax.data.examples import Example, Source
from sam_jax.data.sources import Chain
from sam_jax.data.zero_shot.maps import find_files
from sam_jax.errors import BadRecord, UserError
from sam_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class CocoFiles:
    """COCO-format files.

    Args:
        files: (pattern of the files, folder of their images from the file's folder; None: one of the usual ones).
        file_name: an entry of `images` -> the image's path in its folder.
    """

    files: tuple[tuple[str, str | None], ...]
    file_name: Callable[[Entry], str] = image_name

    def open(self, root: Path, dataset: str) -> Source:
        """
        Raises:
            FileNotFoundError, ValueError: no such file; not COCO-format JSON.
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
    """(h, w), without decoding.

    Raises:
        BadRecord: no image.
    """
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise BadRecord("image cannot be read", path, error) from error


@dataclasses.dataclass(frozen=True)
class CocoVideos:
    """YouTube-VIS's format: of each object a mask, or none, in every frame of its video.

    Args:
        file: of the annotations.
        frames: folder to which `file_names` are relative.
    """

    file: str
    frames: str

    def open(self, root: Path, dataset: str) -> Source:
        """
        Raises:
            FileNotFoundError, ValueError: no such file; not that format.
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
    """JSON files of an annotation tool.

    Args:
        files: (pattern of the files, folder of their images from the folder of the data set).
        parse: content and path of a file -> outlines.
    """

    files: tuple[tuple[str, str], ...]
    parse: Callable[[Any, Path], Outlines]

    def open(self, root: Path, dataset: str) -> Source:
        """
        Raises:
            FileNotFoundError, ValueError: no such file; not that format.
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
    """VGG Image Annotator: an entry per image with `filename` and `regions`, as a list or numbered."""
    for entry in content.values():
        regions = entry["regions"]
        shapes = [r["shape_attributes"] for r in (regions.values() if isinstance(regions, dict) else regions)]
        yield entry["filename"], [[_flat(zip(s["all_points_x"], s["all_points_y"], strict=True))] for s in shapes]


def woodscape_polygons(content: Any, file: Path) -> Iterator[tuple[str, list]]:
    """WoodScape: a file per image, its name the only key; [x, y] pairs in `segmentation`. Void is no object."""
    (entry,) = content.values()
    objects = [a for a in entry["annotation"] if "void" not in [tag.lower() for tag in a.get("tags", [])]]
    yield f"{file.stem}.png", [[_flat(a["segmentation"])] for a in objects]


def visor_polygons(content: Any, file: Path) -> Iterator[tuple[str, list]]:
    """EPIC-KITCHENS VISOR: a file per video; `segments` are polygons of one object as [x, y] pairs."""
    for frame in content["video_annotations"]:
        video, name = frame["image"]["video"], frame["image"]["name"]
        yield (
            f"{video.split('_')[0]}/{video}/{name}",
            [[_flat(polygon) for polygon in a["segments"]] for a in frame["annotations"] if a["segments"]],
        )


def _flat(points: Iterable[Any]) -> list[float]:
    return [float(number) for x, y in points for number in (x, y)]
