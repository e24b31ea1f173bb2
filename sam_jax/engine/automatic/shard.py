"""One worker's work: the pictures of a shard through everything mode, into one tar.

Every picture's part is written as soon as it is ready: a killed run loses seconds, not the hours that a shard of
thousands takes. The tar is the parts one after the other; the shard's report is written last and names what is whole.
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
from typing import NamedTuple

import numpy as np

from sam_jax.automatic_mask_generator import Record, SamAutomaticMaskGenerator
from sam_jax.data.bad_records import BadRecord, BadRecords
from sam_jax.engine.automatic.folder import WORK, Folder, open_url
from sam_jax.engine.automatic.inputs import Picture, Shard
from sam_jax.engine.automatic.parts import Blur, end_mark, load_blur, make_part, read_part
from sam_jax.everything import THREADS, read_batches
from sam_jax.generator_options import GeneratorOptions
from sam_jax.ops.transforms import decode_image

PART = ".part"


@dataclasses.dataclass(frozen=True)
class Job:
    """What all shards of a run have in common. Small and plain: workers get it by pickle."""

    out: Folder
    generator: GeneratorOptions
    settings: str  # digest of all that results depend on
    blur: str | None = None  # MODULE:FUNCTION
    max_bad_fraction: float = 0.01

    def fingerprint(self, shard: Shard) -> str:
        """Another one means that a shard was made of other pictures or by other settings."""
        return hashlib.sha256(f"{self.settings} {shard}".encode()).hexdigest()

    def is_finished(self, shard: Shard) -> bool:
        report = self.read_report(shard)
        return report is not None and self.out.size(shard.tar) == report.bytes

    def read_report(self, shard: Shard) -> ShardReport | None:
        """None if there is none, or one of other pictures or settings."""
        if not self.out.exists(shard.report):
            return None
        report = ShardReport(**json.loads(self.out.read(shard.report)))
        return report if report.fingerprint == self.fingerprint(shard) else None


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What a shard holds."""

    fingerprint: str
    tar: str
    bytes: int
    sha256: str
    pictures: int  # in the tar
    masks: int
    without_masks: list[str]  # names of pictures where nothing was found, which are not in the tar
    bad: list[dict[str, str]]  # name, reason and detail of pictures that can't be used


class _Loaded(NamedTuple):
    picture: Picture
    encoded: bytes
    image: np.ndarray


def annotate_shard(job: Job, shard: Shard, generator: SamAutomaticMaskGenerator) -> ShardReport:
    """Writes the tar of a shard and its report; what is there already is not done again.

    Pictures go through the model in groups that depend on the list alone, so that a run that goes on computes the
    same batches as one that was never stopped.

    Raises:
        ValueError: too many bad pictures, or `blur` gives something else than pictures.
        OSError: a result can't be written.
    """
    if job.is_finished(shard):
        report = job.read_report(shard)
        assert report is not None
        return report
    pictures = shard.pictures(job.out)
    work = f"{WORK}/{shard.number:06d}"
    there = _whole_parts(job.out, work)
    at_once = generator.batch_size
    groups = [pictures[i : i + at_once] for i in range(0, len(pictures), at_once)]
    todo = [group for group in groups if any(_part(picture) not in there for picture in group)]
    bad = _annotate(job, todo, work, generator, BadRecords(job.max_bad_fraction, len(pictures)))
    report = _join(job, shard, [picture for picture in pictures if picture not in bad], bad, work)
    job.out.write(shard.report, json.dumps(dataclasses.asdict(report), indent=1).encode(), work)
    job.out.remove(work)
    return report


def _annotate(
    job: Job, groups: Sequence[list[Picture]], work: str, generator: SamAutomaticMaskGenerator, limit: BadRecords
) -> dict[Picture, BadRecord]:
    """Writes the parts of the pictures, reading ahead and writing behind; gives those that can't be used."""
    blur = load_blur(job.blur) if job.blur else None
    bad: dict[Picture, BadRecord] = {}
    writing: deque[tuple[Picture, Future[None]]] = deque()

    def read(group: list[Picture]) -> list[_Loaded | tuple[Picture, BadRecord]]:
        return [_read(picture, generator.check_image) for picture in group]

    def finish(most: int) -> None:
        while len(writing) > most:
            picture, future = writing.popleft()
            try:
                future.result()
            except BadRecord as error:
                bad[picture] = error
            limit.count(bad.get(picture))

    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
        try:
            for ((_, contents),) in read_batches(readers, groups, read, 1, _never):
                loaded = [content for content in contents if isinstance(content, _Loaded)]
                for content in contents:
                    if not isinstance(content, _Loaded):
                        picture, bad[picture] = content
                        limit.count(bad[picture])
                results = generator.generate_batch([content.image for content in loaded])
                for content, records in zip(loaded, results, strict=True):
                    writing.append((content.picture, writers.submit(_save, job.out, work, content, records, blur)))
                finish(2 * generator.batch_size)
            finish(0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    return bad


def _read(picture: Picture, check: Callable[[np.ndarray], np.ndarray]) -> _Loaded | tuple[Picture, BadRecord]:
    """The file and its pixels; of one that can't be used the reason."""
    try:
        file_system, path = open_url(picture.url)
        encoded = file_system.cat_file(path)
    except OSError as error:
        return picture, BadRecord("picture cannot be read", picture.url, f"{type(error).__name__}: {error}")
    try:
        return _Loaded(picture, encoded, check(decode_image(io.BytesIO(encoded), picture.name)))
    except (ValueError, TypeError) as error:
        return picture, BadRecord("picture cannot be used", picture.url, error)


def _save(out: Folder, work: str, loaded: _Loaded, records: Sequence[Record], blur: Blur | None) -> None:
    part = make_part(loaded.picture, loaded.encoded, loaded.image, records, blur)
    out.write(f"{work}/{_part(loaded.picture)}", part, work)


def _join(job: Job, shard: Shard, pictures: Sequence[Picture], bad: dict[Picture, BadRecord], work: str) -> ShardReport:
    """The parts of the pictures as one tar."""
    digest, length, masks = hashlib.sha256(), 0, 0
    without_masks = []
    with job.out.writing(shard.tar, work) as file:
        for picture, part, found in _read_parts(job.out, work, pictures):
            if found:
                file.write(part)
                digest.update(part)
                length += len(part)
                masks += found
            else:
                without_masks.append(picture.name)
        mark = end_mark(length)
        file.write(mark)
        digest.update(mark)
    return ShardReport(
        fingerprint=job.fingerprint(shard),
        tar=shard.tar,
        bytes=length + len(mark),
        sha256=digest.hexdigest(),
        pictures=len(pictures) - len(without_masks),
        masks=masks,
        without_masks=without_masks,
        bad=[
            {"name": picture.name, "reason": bad[picture].reason, "detail": bad[picture].detail}
            for picture in sorted(bad, key=lambda picture: picture.name)
        ],
    )


def _read_parts(out: Folder, work: str, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, bytes, int]]:
    """(picture, its part, number of masks)."""

    def read(picture: Picture) -> tuple[bytes, int]:
        part = out.read(f"{work}/{_part(picture)}")
        return part, len(read_part(part)["annotations"])

    with ThreadPoolExecutor(THREADS) as readers:
        for ((picture, (part, found)),) in read_batches(readers, pictures, read, 1, _never):
            yield picture, part, found


def _whole_parts(out: Folder, work: str) -> set[str]:
    """Names of the parts that an earlier run has left, without those that a crash of the machine has damaged."""

    def is_whole(name: str) -> bool:
        try:
            read_part(out.read(f"{work}/{name}"))
        except ValueError:
            return False
        return True

    names = [name for name in out.names(work) if name.endswith(PART)]
    with ThreadPoolExecutor(THREADS) as readers:
        return set(itertools.compress(names, readers.map(is_whole, names)))


def _part(picture: Picture) -> str:
    return f"{picture.id}{PART}"


def _never(item: object, reason: str) -> None:
    """What can't be read is caught by the reading function itself."""
    raise RuntimeError(reason)
