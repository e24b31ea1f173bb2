"""Export of saved masks: those of a project, or of a run of the automatic stage, in any output format."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sam_jax.data.examples import check_rle
from sam_jax.data.images import decode_image, read_image
from sam_jax.engine.datasets import AUTOMATIC, read_automatic
from sam_jax.engine.records import KEPT, StoredImage, bare_record, to_record
from sam_jax.engine.store import Store
from sam_jax.errors import AlreadyExists, UserError
from sam_jax.everything.formats import FORMATS, OBJECT, AnnotatedImage
from sam_jax.files import make_folder, remove, replacing
from sam_jax.progress import ProgressBar
from sam_jax.types import Record


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """How much was written."""

    images: int
    masks: int


def read_stored_image(stored: StoredImage) -> np.ndarray:
    """Returns the pixels of an image of a project, RGB (H, W, 3)."""
    return read_image(stored.path)


def saved_masks(
    store: Store,
    images: Sequence[StoredImage] | None = None,
    read: Callable[[StoredImage], np.ndarray] = read_stored_image,
) -> Iterator[AnnotatedImage]:
    """Yields images of a project with their accepted and edited masks.

    Args:
        images: images of the project; None means all that have such masks.
        read: reads an image's pixels, for the formats that draw on them.
    """
    names: set[PurePosixPath] = set()
    for stored in store.images() if images is None else images:
        records = [to_record(mask) for mask in store.masks(stored.id) if mask.state in KEPT]
        if records or images is not None:
            name = PurePosixPath(stored.name)
            if name.with_suffix("") in names:  # of another folder of images, or a.jpg beside a.png
                name = name.with_name(f"{name.stem}_{stored.id}{name.suffix}")
            names.add(name.with_suffix(""))
            size = stored.height, stored.width
            yield AnnotatedImage(name, stored.name, stored.id, size, records, functools.partial(read, stored))


def automatic_masks(path: Path, first_id: int = 1) -> Iterator[AnnotatedImage]:
    """Yields the images and masks of an output of `sam-jax engine run`, or of anything in SA-1B's layout.

    Args:
        first_id: number of the first image; the others are numbered consecutively.

    Raises:
        UserError: nothing exists at `path`, or it can't be read.
    """
    for number, (encoded, content) in enumerate(read_automatic(path), start=first_id):
        try:
            file_name = str(content["image"]["file_name"])
            size = int(content["image"]["height"]), int(content["image"]["width"])
            records = [_to_record(annotation, size, file_name) for annotation in content["annotations"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"expected JSON of SA-1B's layout in {path}: {type(error).__name__} {error}") from error
        read = functools.partial(_decode, encoded, file_name)
        yield AnnotatedImage(PurePosixPath(AUTOMATIC) / file_name, file_name, number, size, records, read)


def _to_record(annotation: dict[str, Any], size: tuple[int, int], where: str) -> Record:
    check_rle(annotation["segmentation"], size, where)
    known = {field: value for field, value in annotation.items() if field != "id"}
    return bare_record(annotation["segmentation"]) | known


def _decode(encoded: bytes, name: str) -> np.ndarray:
    return decode_image(io.BytesIO(encoded), name)


def categories_of(store: Store) -> list[str]:
    """Returns the project's list of classes, and then the other names of saved masks, in order of first appearance."""
    masks = (mask for stored in store.images() for mask in store.masks(stored.id))
    names = [mask.name or OBJECT for mask in masks if mask.state in KEPT]
    return list(dict.fromkeys([*store.classes, *names])) or [OBJECT]


def write_masks(
    annotated_images: Iterable[AnnotatedImage], out: Path, format: str, categories: Sequence[str]
) -> ExportReport:
    """Writes masks into a folder, which appears only once it is complete.

    Args:
        out: folder, which must not exist yet.
        format: one of `FORMATS`.
        categories: the names of the masks' objects.

    Raises:
        AlreadyExists: `out` exists.
        UserError: an image that the format draws on can't be read.
        OSError: a result can't be written.
    """
    if out.exists():
        raise AlreadyExists(f"expected a new folder for the masks, {out} is there; choose another one")
    form = FORMATS[format]
    names, masks = [], 0
    make_folder(out.parent)
    with replacing(out) as temporary:
        make_folder(temporary)
        for annotated in annotated_images:
            form.save(temporary, annotated, categories)
            names.append((annotated.image_id, annotated.name))
            masks += len(annotated.records)
        form.finish(temporary, names, categories)
        if form.only_parts:
            remove(temporary / form.folder)
    return ExportReport(len(names), masks)


def export_project(store: Store, out: Path, format: str, automatic: Sequence[Path] = ()) -> ExportReport:
    """Writes all saved masks of a project, with a progress bar.

    Args:
        out: folder, which must not exist yet.
        format: one of `FORMATS`.
        automatic: outputs of `sam-jax engine run` whose masks are written too, in a folder named `automatic`.

    Raises:
        UserError: there are no masks, `out` exists, or something can't be read.
        OSError: a result can't be written.
    """
    categories = categories_of(store)
    if automatic and OBJECT not in categories:
        categories.append(OBJECT)

    def every() -> Iterator[AnnotatedImage]:
        yield from saved_masks(store)
        next_id = max((stored.id for stored in store.images()), default=0) + 1
        for path in automatic:
            for annotated in automatic_masks(path, next_id):
                yield annotated
                next_id = annotated.image_id + 1

    report = write_masks(ProgressBar(every(), "exporting", unit="image", delay=1), out, format, categories)
    if not report.images:
        remove(out)
        raise UserError(f"expected saved masks in {store.folder}, found none; annotate some first (sam-jax annotate)")
    return report
