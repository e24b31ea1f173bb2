"""Defines what an output format is, and what it is given to write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from sam_jax.errors import UserError
from sam_jax.files import make_folder, replacing
from sam_jax.types import Record

OBJECT = "object"  # the category of a mask without a name


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image and its masks.

    Args:
        name: path of the results without their ending, with subfolders; every image has another one.
        file_name: name of the image in annotations.
        image_id: number of the image in annotations.
        size: (h, w), pixels.
        records: the masks, as everything mode gives them; `name` is the category, if there is one.
        read: returns the pixels, RGB (H, W, 3); called by formats that show the image.
    """

    name: PurePosixPath
    file_name: str
    image_id: int
    size: tuple[int, int]
    records: Sequence[Record]
    read: Callable[[], UInt8[ndarray, "H W 3"]]

    def entry(self) -> dict[str, Any]:
        """Returns the image's entry, which COCO and SA-1B have in common."""
        return {"file_name": self.file_name, "height": self.size[0], "width": self.size[1]}


@dataclasses.dataclass(frozen=True)
class OutputFormat:
    """A way to write masks: a file or folder for each image, and perhaps something for all of them at the end.

    Args:
        name: name by which users choose the format.
        description: what is written, in a few words.
        suffix: ending of an image's file or folder.
        write: writes an image's file or folder at a path; takes the names of all categories as well.
        folder: subfolder of the output folder for the images' files; "": none.
        merge: writes what belongs to all images into the output folder, from (id, name) of each image, whose result
            need not be there, and the names of all categories.
        only_parts: whether the images' files are of no use once they are merged.
    """

    name: str
    description: str
    suffix: str
    write: Callable[[Path, AnnotatedImage, Sequence[str]], None]
    folder: str = ""
    merge: Callable[[Path, Sequence[tuple[int, PurePosixPath]], Sequence[str]], None] | None = None
    only_parts: bool = False

    def target(self, out: Path, name: PurePosixPath) -> Path:
        """Returns where the result of an image lies."""
        return out / self.folder / name.with_suffix(self.suffix)

    def save(self, out: Path, annotated: AnnotatedImage, categories: Sequence[str] = (OBJECT,)) -> None:
        """Writes the result of an image, which appears whole or not at all.

        Args:
            categories: the names that the masks of all images have; OBJECT stands for no name.

        Raises:
            UserError: the image is to be drawn and can't be read.
            OSError: it can't be written; says that what is finished is kept.
        """
        target = self.target(out, annotated.name)
        try:
            make_folder(target.parent)
            with replacing(target) as temporary:
                self.write(temporary, annotated, categories)
        except UserError:  # the image can't be read
            raise
        except OSError as error:
            raise OSError(
                f"could not write {target}: {error.strerror or error}; finished images are kept, "
                "the same command goes on with the rest"
            ) from error

    def finish(
        self, out: Path, names: Sequence[tuple[int, PurePosixPath]], categories: Sequence[str] = (OBJECT,)
    ) -> None:
        """Writes what belongs to all images together, once their results are there.

        Args:
            names: (id, name) of every image.
        """
        if self.merge is not None:
            self.merge(out, names, categories)


def category_index(record: Record, categories: Sequence[str]) -> int:
    """Returns the position of a mask's category."""
    return categories.index(record.get("name") or OBJECT)
