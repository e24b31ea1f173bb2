"""A run of the automatic stage: annotates images on any file system exactly once, and writes tars like SA-1B's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from sam_jax.data.bad_records import BAD_ALWAYS_ALLOWED
from sam_jax.engine.automatic.folder import WORK, Folder, as_os_errors
from sam_jax.engine.automatic.inputs import LIST, Shard, find_images, read_shards, write_list
from sam_jax.engine.automatic.parts import load_blur
from sam_jax.engine.automatic.shard import AnnotationJob, ShardReport
from sam_jax.errors import MissingPackage, UserError
from sam_jax.everything.filter_counts import FilterCounts
from sam_jax.everything.folders import check_settings
from sam_jax.everything.options import PAPER, GeneratorOptions
from sam_jax.files import digest_file, finding_full_disk, holding

MANIFEST = "manifest.json"
SETTINGS = "engine.settings.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Summary of a finished run."""

    total: int  # images in the list
    images: int  # images in the tars
    masks: int
    without_masks: list[str]  # names of images on which no mask was found, which are in no tar
    dropped: FilterCounts  # what the filters dropped on those
    bad: list[dict[str, str]]  # name, reason and detail of images that can't be used
    tars: int

    def check_bad(self, max_fraction: float) -> None:
        """Raises a UserError if more than this fraction of the images, and more than a few, can't be used."""
        if len(self.bad) > max(BAD_ALWAYS_ALLOWED, max_fraction * self.total):
            raise UserError(f"{len(self.bad)} of {self.total} images can't be used; allow more with --max-bad-fraction")


@as_os_errors()
def annotate_images(
    inputs: Sequence[str],
    out: str,
    generator: GeneratorOptions = PAPER,
    *,
    shards: int | None = None,
    blur: str | None = None,
    max_bad_fraction: float = 0.01,
    workers: int = 1,
    beam_options: Sequence[str] = (),
    process: int = 0,
    processes: int = 1,
) -> Manifest | int:
    """Annotates images with everything mode and writes them as tars, or resumes a run that was stopped.

    Args:
        inputs: images, folders, lists and globs, local or at URLs.
        out: folder or URL for the tars, their reports and the manifest.
        generator: model and settings of everything mode.
        shards: number of tars; None means one per 1000 images.
        blur: MODULE:FUNCTION that hides faces and license plates in an image before it is written.
        max_bad_fraction: the run stops if more than this fraction of a shard's images can't be used.
        workers: number of processes on this machine, each of which loads the model.
        beam_options: options of Beam's pipeline.
        process: index of this process, if several hosts without a cluster divide the shards among them.
        processes: number of such processes.

    Returns:
        A summary of what was written, or the number of shards that other processes still have to finish.

    Raises:
        UserError: there are no images, `out` holds results of other settings, or a shard has too many bad images.
        InUse: another process with the same number writes to `out`, a local folder.
        OSError: results can't be written, or an object store can't be reached. Finished results are kept.
        MissingPackage: Beam, or fsspec's package for a protocol, is not installed.
    """
    pipeline, folder = _import_pipeline(), Folder.at(out)
    if blur:
        load_blur(blur)  # a mistake in it is found before hours of work
    # An object store has no locks: whoever uses one sees to it that each process has a number of its own.
    with _local_folder(Path(folder.shown), process) if folder.is_local else contextlib.nullcontext():
        job = _open_job(inputs, folder, generator, shards, blur, max_bad_fraction)
        all_shards = read_shards(job.out, shards)
        if processes > len(all_shards):
            raise UserError(
                f"{processes} processes have but {len(all_shards)} shards; give --shards of {processes} or more"
            )
        pipeline.annotate(job, all_shards[process::processes], beam_options, workers)
        reports = [report for report in job.read_reports(all_shards) if report is not None]
        if len(reports) < len(all_shards):
            return len(all_shards) - len(reports)
        return _write_manifest(job, all_shards, reports)


@contextlib.contextmanager
def _local_folder(folder: Path, process: int) -> Iterator[None]:
    """Keeps a second process of the same number out of a folder, and says if its disk is full."""
    with holding(folder, f"process_{process}"), finding_full_disk(folder):
        yield


def _import_pipeline() -> ModuleType:
    logging.disable(logging.WARNING)  # Beam lists which clients of Google's services it has not found
    try:
        from sam_jax.engine.automatic import pipeline
    except ImportError as error:
        raise MissingPackage(
            f"the automatic stage takes more packages ({error}); pip install 'sam_jax[beam]'"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return pipeline


def _open_job(
    inputs: Sequence[str],
    out: Folder,
    generator: GeneratorOptions,
    shards: int | None,
    blur: str | None,
    max_bad_fraction: float,
) -> AnnotationJob:
    """Writes settings and images, or compares them with earlier ones."""
    settings = {
        "inputs": list(inputs),
        "shards": shards,
        "blur": blur,
        "model_digest": digest_model(generator.model),
        **generator.settings(),
    }
    if out.exists(SETTINGS):
        check_settings(out.read(SETTINGS).decode(), settings, f"{out.shown}/{SETTINGS}")
    if not (out.exists(SETTINGS) and out.exists(LIST)):
        listed_images = find_images(inputs, out)
        out.write(SETTINGS, json.dumps(settings, indent=1).encode())
        write_list(out, listed_images)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + _digest(out, LIST).encode()).hexdigest()
    return AnnotationJob(out, generator, digest, blur, max_bad_fraction)


def digest_model(name_or_path: str) -> str:
    """Returns the SHA-256 of a checkpoint's files; empty for a model's name, which always means the same checkpoint."""
    path = Path(name_or_path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            return ""
        digest.update(bytes.fromhex(digest_file(file)))
    return digest.hexdigest()


def _digest(out: Folder, name: str) -> str:
    with out.open_to_read(name) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_manifest(job: AnnotationJob, shards: Sequence[Shard], reports: Sequence[ShardReport]) -> Manifest:
    """Writes the manifest of a run whose shards are all finished; every process would write the same one."""
    images, masks = (sum(getattr(report, name) for report in reports) for name in ("pictures", "masks"))
    manifest = Manifest(
        total=sum(shard.count for shard in shards),
        images=images,
        masks=masks,
        without_masks=[name for report in reports for name in report.without_masks],
        dropped=sum((FilterCounts(**report.dropped) for report in reports), FilterCounts()),
        bad=[entry for report in reports for entry in report.bad],
        tars=len(reports),
    )
    content = {
        "pictures": images,
        "masks": masks,
        "without_masks": manifest.without_masks,
        "dropped": dataclasses.asdict(manifest.dropped),
        "bad": manifest.bad,
        "shards": [
            {name: getattr(report, name) for name in ("tar", "bytes", "sha256", "pictures", "masks")}
            for report in reports
        ],
    }
    job.out.write(MANIFEST, json.dumps(content, indent=1).encode())
    job.out.remove_if_empty(WORK)
    return manifest
