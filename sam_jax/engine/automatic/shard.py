"""Annotation of one shard: everything mode finds the masks of its images, which are written as one tar.

The part of each image is written as soon as it is ready, so a killed run loses seconds and not the hours that a large
shard takes. The tar joins the parts; the shard's report is written last, and tells that the shard is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sam_jax.data.bad_records import BadRecords
from sam_jax.data.images import READER_THREADS, decode_image, read_batches
from sam_jax.engine.automatic.folder import WORK, Folder, open_url
from sam_jax.engine.automatic.inputs import ListedImage, Shard
from sam_jax.engine.automatic.parts import DROPPED, Blur, end_mark, load_blur, make_part, read_part
from sam_jax.errors import BadRecord, UserError
from sam_jax.everything.filter_counts import FilterCounts
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.everything.options import GeneratorOptions
from sam_jax.types import Record

PART = ".part"
REPORT_THREADS = 16  # threads that read reports: object stores are slow to answer a request


@dataclasses.dataclass(frozen=True)
class AnnotationJob:
    """The settings that all shards of a run have in common. Workers receive them by pickle."""

    out: Folder
    generator: GeneratorOptions
    settings: str  # digest of everything that the results depend on
    blur: str | None = None  # MODULE:FUNCTION
    max_bad_fraction: float = 0.01

    def fingerprint(self, shard: Shard) -> str:
        """Returns a digest of a shard's images and settings, by which outdated results are recognised."""
        return hashlib.sha256(f"{self.settings} {shard}".encode()).hexdigest()

    def read_report(self, shard: Shard) -> ShardReport | None:
        """Returns a shard's report; None unless the shard is complete, with the same images and settings."""
        if not self.out.exists(shard.report):
            return None
        report = ShardReport(**json.loads(self.out.read(shard.report)))
        complete = report.fingerprint == self.fingerprint(shard) and report.bytes == self.out.size(shard.tar)
        return report if complete else None

    def read_reports(self, shards: Sequence[Shard]) -> list[ShardReport | None]:
        """Calls `read_report` for many shards at the same time."""
        with ThreadPoolExecutor(REPORT_THREADS) as threads:
            return list(threads.map(self.read_report, shards))


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """The contents of a finished shard."""

    fingerprint: str
    tar: str
    bytes: int
    sha256: str
    pictures: int  # images in the tar
    masks: int
    without_masks: list[str]  # names of images on which no mask was found, which are not in the tar
    bad: list[dict[str, str]]  # name, reason and detail of images that can't be used
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # `FilterCounts` of the images without masks


class _LoadedImage(NamedTuple):
    """An image with its file's contents and its pixels."""

    listed: ListedImage
    encoded: bytes
    image: np.ndarray


def annotate_shard(job: AnnotationJob, shard: Shard, generator: SamAutomaticMaskGenerator) -> ShardReport:
    """Annotates a shard, writes its tar and report, and returns the report. Finished parts are not computed again.

    The batches that pass the model depend on the list of images alone, so that a resumed run computes the same batches
    as an uninterrupted one.

    Raises:
        UserError: too many images can't be used, or `blur` returns something else than images.
        OSError: a result can't be written.
    """
    if (report := job.read_report(shard)) is not None:
        return report
    listed_images = shard.read_images(job.out)
    work = f"{WORK}/{shard.number:06d}"
    finished = _complete_parts(job.out, work)
    at_once = generator.batch_size
    groups = [listed_images[i : i + at_once] for i in range(0, len(listed_images), at_once)]
    todo = [group for group in groups if any(_part(listed) not in finished for listed in group)]
    bad = _annotate(job, todo, work, generator, BadRecords(job.max_bad_fraction, len(listed_images)))
    report = _join(job, shard, [listed for listed in listed_images if listed not in bad], bad, work)
    job.out.write(shard.report, json.dumps(dataclasses.asdict(report), indent=1).encode(), work)
    job.out.remove(work)
    return report


def _annotate(
    job: AnnotationJob,
    groups: Sequence[list[ListedImage]],
    work: str,
    generator: SamAutomaticMaskGenerator,
    limit: BadRecords,
) -> dict[ListedImage, BadRecord]:
    """Writes the parts of the images, reading and writing in other threads; returns the images that can't be used."""
    blur = load_blur(job.blur) if job.blur else None
    bad: dict[ListedImage, BadRecord] = {}
    writing: deque[tuple[ListedImage, Future[None]]] = deque()

    def read(group: list[ListedImage]) -> list[_LoadedImage | tuple[ListedImage, BadRecord]]:
        return [_read(listed, generator.check_image) for listed in group]

    def finish(most: int) -> None:
        while len(writing) > most:
            listed, future = writing.popleft()
            try:
                future.result()
            except BadRecord as error:
                bad[listed] = error
            limit.count(bad.get(listed))

    with ThreadPoolExecutor(READER_THREADS) as readers, ThreadPoolExecutor(READER_THREADS) as writers:
        try:
            for ((_, contents),) in read_batches(readers, groups, read, 1, _stop):
                loaded = [content for content in contents if isinstance(content, _LoadedImage)]
                for content in contents:
                    if not isinstance(content, _LoadedImage):
                        listed, bad[listed] = content
                        limit.count(bad[listed])
                dropped: dict[int, FilterCounts] = {}
                results = generator.generate_batch([content.image for content in loaded], dropped.__setitem__)
                for i, (content, records) in enumerate(zip(loaded, results, strict=True)):
                    save = writers.submit(_save, job.out, work, content, records, dropped.get(i), blur)
                    writing.append((content.listed, save))
                finish(2 * generator.batch_size)
            finish(0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    return bad


def _read(
    listed: ListedImage, check: Callable[[np.ndarray], np.ndarray]
) -> _LoadedImage | tuple[ListedImage, BadRecord]:
    """Reads an image's file and pixels; returns the reason if it can't be used."""
    try:
        file_system, path = open_url(listed.url)
        encoded = file_system.cat_file(path)
    except OSError as error:
        return listed, BadRecord("image cannot be read", listed.url, f"{type(error).__name__}: {error}")
    try:
        return _LoadedImage(listed, encoded, check(decode_image(io.BytesIO(encoded), listed.name)))
    except UserError as error:
        return listed, BadRecord("image cannot be used", listed.url, error)


def _save(
    out: Folder,
    work: str,
    loaded: _LoadedImage,
    records: Sequence[Record],
    dropped: FilterCounts | None,
    blur: Blur | None,
) -> None:
    part = make_part(loaded.listed, loaded.encoded, loaded.image, records, dropped, blur)
    out.write(f"{work}/{_part(loaded.listed)}", part, work)


def _join(
    job: AnnotationJob, shard: Shard, listed_images: Sequence[ListedImage], bad: dict[ListedImage, BadRecord], work: str
) -> ShardReport:
    """Writes the parts of the images as one tar, and returns the shard's report."""
    digest, length, masks = hashlib.sha256(), 0, 0
    without_masks, dropped = [], FilterCounts()
    with job.out.open_to_write(shard.tar, work) as file:
        for listed, part, content in _read_parts(job.out, work, listed_images):
            if found := len(content["annotations"]):
                file.write(part)
                digest.update(part)
                length += len(part)
                masks += found
            else:
                without_masks.append(listed.name)
                dropped += FilterCounts(**content.get(DROPPED, {}))
        mark = end_mark(length)
        file.write(mark)
        digest.update(mark)
    return ShardReport(
        fingerprint=job.fingerprint(shard),
        tar=shard.tar,
        bytes=length + len(mark),
        sha256=digest.hexdigest(),
        pictures=len(listed_images) - len(without_masks),
        masks=masks,
        without_masks=without_masks,
        bad=[
            {"name": listed.name, "reason": bad[listed].reason, "detail": bad[listed].detail}
            for listed in sorted(bad, key=lambda listed: listed.name)
        ],
        dropped=dataclasses.asdict(dropped),
    )


def _read_parts(
    out: Folder, work: str, listed_images: Sequence[ListedImage]
) -> Iterator[tuple[ListedImage, bytes, dict[str, Any]]]:
    """Yields each image with its part and the content of the part's JSON."""

    def read(listed: ListedImage) -> tuple[bytes, dict[str, Any]]:
        part = out.read(f"{work}/{_part(listed)}")
        return part, read_part(part)

    with ThreadPoolExecutor(READER_THREADS) as readers:
        for ((listed, (part, content)),) in read_batches(readers, listed_images, read, 1, _stop):
            yield listed, part, content


def _complete_parts(out: Folder, work: str) -> set[str]:
    """Returns the names of the parts that an earlier run has written, without those that a crash has damaged."""

    def is_complete(name: str) -> bool:
        try:
            read_part(out.read(f"{work}/{name}"))
        except UserError:
            return False
        return True

    names = [name for name in out.names(work) if name.endswith(PART)]
    with ThreadPoolExecutor(READER_THREADS) as readers:
        return set(itertools.compress(names, readers.map(is_complete, names)))


def _part(listed: ListedImage) -> str:
    return f"{listed.id}{PART}"


def _stop(item: object, reason: str) -> None:
    """Ends the shard: a part that was just written can't be read. Images never come here, see `_read`."""
    raise OSError(reason)
