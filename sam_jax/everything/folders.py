"""Runs everything mode over folders: images in, annotation files out, resumable.

Images are read ahead and results written behind in threads, while the devices compute. Every result is written under
a temporary name and renamed: what is there is whole, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sam_jax.data.images import READER_THREADS, ImageFile, read_batches, read_image
from sam_jax.errors import UserError
from sam_jax.everything.filter_counts import FilterCounts
from sam_jax.everything.formats import FORMATS, AnnotatedImage
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.files import holding, make_folder, read_text, write_atomically
from sam_jax.progress import ProgressBar

WRITER_THREADS = 2


@dataclasses.dataclass
class EverythingReport:
    """How many images a run has segmented, skipped and failed on, and how many masks it has found."""

    finished: int = 0  # images
    skipped: int = 0  # images that had a result already
    masks: int = 0
    empty: int = 0  # finished images without masks
    dropped: FilterCounts = dataclasses.field(default_factory=FilterCounts)  # what the filters dropped on those
    failures: dict[Path, str] = dataclasses.field(default_factory=dict)  # images that can't be segmented, and why


def segment_images(
    generator: SamAutomaticMaskGenerator,
    image_files: Sequence[ImageFile],
    out: Path,
    format: str,
    settings: Mapping[str, Any],
) -> EverythingReport:
    """Writes the masks of every image that has no result yet, with a progress bar.

    Args:
        generator: finds the masks; its `output_mode` must be coco_rle.
        out: folder for the results; made if it is not there.
        format: one of `FORMATS`.
        settings: what the results depend on, as JSON takes it; kept in `out/everything.settings.json`.

    Raises:
        UserError: `out` holds results of other settings.
        InUse: another process writes there.
        OSError: a result can't be written. What was finished is kept.
    """
    with holding(out, "everything"):
        return _segment_images(generator, image_files, out, format, settings)


def _segment_images(
    generator: SamAutomaticMaskGenerator,
    image_files: Sequence[ImageFile],
    out: Path,
    format: str,
    settings: Mapping[str, Any],
) -> EverythingReport:
    form = FORMATS[format]
    _claim(out, dict(settings) | {"format": format})
    todo = [image_file for image_file in image_files if not form.target(out, image_file.name).exists()]
    report = EverythingReport(skipped=len(image_files) - len(todo))
    writing: deque[Future[None]] = deque()

    def read(image_file: ImageFile) -> np.ndarray:
        return generator.check_image(read_image(image_file.path))

    def fail(image_file: ImageFile, reason: str) -> None:
        report.failures[image_file.path] = reason

    def count_empty(_: int, dropped: FilterCounts) -> None:
        report.empty += 1
        report.dropped += dropped

    def finish(most: int) -> None:
        """Waits until no more than `most` results are still to be written; a failed one raises."""
        while len(writing) > most or (writing and writing[0].done()):
            writing.popleft().result()
            report.finished += 1
        bar.update(report.skipped + report.finished + len(report.failures) - bar.n)

    with (
        ProgressBar(total=len(image_files), initial=report.skipped, unit="image", smoothing=0.1) as bar,
        ThreadPoolExecutor(READER_THREADS) as readers,
        ThreadPoolExecutor(WRITER_THREADS) as writers,
    ):
        try:
            for batch in read_batches(readers, todo, read, generator.batch_size, fail):
                results = generator.generate_batch([image for _, image in batch], count_empty)
                for (image_file, image), records in zip(batch, results, strict=True):
                    annotated = AnnotatedImage(
                        image_file.name,
                        str(image_file.name),
                        image_file.image_id,
                        image.shape[:2],
                        records,
                        functools.partial(np.asarray, image),
                    )
                    writing.append(writers.submit(form.save, out, annotated))
                    report.masks += len(records)
                bar.set_postfix(masks=report.masks, refresh=False)
                finish(2 * generator.batch_size)
            finish(0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    form.finish(out, [(number, image_file.name) for number, image_file in enumerate(image_files, start=1)])
    return report


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings in the output folder, or compares them with those that are there."""
    path = out / "everything.settings.json"
    try:
        make_folder(out)
        if not path.exists():
            write_atomically(path, json.dumps(settings, indent=1))
        text = read_text(path)
    except OSError as error:
        raise OSError(f"the output folder {out} can't be written: {error.strerror or error}") from error
    check_settings(text, settings, path)


def check_settings(text: str, settings: Mapping[str, Any], path: object) -> None:
    """Compares the settings of an earlier run, from the file at `path`, with those of this one.

    Raises:
        UserError: the settings differ, or the file holds none.
    """
    try:
        before = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"expected the settings of an earlier run in {path}, got {text[:80]!r}") from error
    after = json.loads(json.dumps(settings))
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    if changed:
        changes = ", ".join(f"{name} {before.get(name)!r} -> {after.get(name)!r}" for name in changed)
        folder = PurePosixPath(str(path)).parent
        raise UserError(f"{folder} holds results of other settings ({changes}); choose another output folder")
