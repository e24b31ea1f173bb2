"""`sam-jax engine run`: images anywhere -> tars like SA-1B's, exactly once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sam_jax.engine.automatic.folder import as_os_errors
from sam_jax.errors import MissingPackage, UserError
from sam_jax.everything.options import PAPER, GeneratorOptions

if TYPE_CHECKING:
    from sam_jax.engine.automatic.folder import Folder
    from sam_jax.engine.automatic.inputs import Shard
    from sam_jax.engine.automatic.shard import Job, ShardReport

MANIFEST = "manifest.json"
SETTINGS = "engine.settings.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """Annotates images without people: everything mode, written as a data set like SA-1B.

    Stop or kill it at any time: the same command goes on, and ends with the same bytes as if it had never been stopped.
    The tars train as they are (train.py --data.path OUT), or after sam-jax prepare OUT.
    Example: sam-jax engine run s3://bucket/photos --out s3://bucket/annotated --model vit_h --shards 1000
    """

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders (searched with all below them), text files with a path or URL per line, and globs; on this
    machine or at URLs that fsspec knows, with its package for them: pip install s3fs for s3://, gcsfs for gs://, adlfs
    for abfs://. Keys and addresses are found as those packages say, such as AWS_ENDPOINT_URL for a server of one's
    own; workers need them, too."""
    out: str
    """Folder or URL for the tars, manifest.json, and what is known of each tar (reports/)."""
    format: Literal["tar", "both"] = "tar"
    """both: in addition a TFDS data set of ArrayRecord files, as sam-jax prepare makes of the tars."""
    shards: int | None = None
    """Tars to split the images into; without it one for each 1000 images."""
    blur: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Hides faces and plates: a function from RGB uint8 (H, W, 3) to the same. Masks are found before, in the original
    pixels; only what it gives is written."""
    max_bad_fraction: float = 0.01
    """More images that can't be used are an error."""
    runner: Literal["DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner"] = "DirectRunner"
    """Where Beam runs: this machine, or a cluster whose workers see inputs, model and out under the same names;
    PortableRunner: any job server of Beam's."""
    beam_options: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    """More for Beam's pipeline, such as --beam-options="--flink_master=host:8081" or "--job_endpoint=host:8099"."""
    workers: int = 1
    """Processes on this machine, each with a model of its own. One keeps all accelerators of a host busy."""
    process: int | None = None
    """Of several hosts without a cluster, which this is, from 0: it takes its part of the shards. Without it TPU pods,
    SLURM and Open MPI are detected."""
    processes: int | None = None
    """How many hosts there are."""
    generator: tyro.conf.OmitArgPrefixes[GeneratorOptions] = PAPER


@as_os_errors()
def run(options: Run) -> int:
    """Annotates, and prints what there is.

    Returns:
        Exit code: 1 if some images could not be used.

    Raises:
        FileNotFoundError, ValueError: no images; results of other settings in `out`; too many bad images, which
            the manifest lists all the same.
        OSError: results can't be written, or an object store can't be reached; what is finished is kept.
        ImportError: Beam, or fsspec's package for a protocol, is not installed.
    """
    process, processes = _which_process(options)
    logging.disable(logging.WARNING)  # Beam lists which clients of Google's services it has not found
    try:
        from sam_jax.engine.automatic.pipeline import annotate
    except ImportError as error:
        raise MissingPackage(
            f"the automatic stage takes more packages ({error}); pip install 'sam_jax[beam]'"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    from sam_jax.engine.automatic.inputs import read_shards

    job = _open(options)
    shards = read_shards(job.out, options.shards)
    if processes > len(shards):
        raise UserError(f"{processes} processes have but {len(shards)} shards; give --shards of {processes} or more")
    mine = shards[process::processes]
    beam_options = [] if options.runner == "DirectRunner" else [f"--runner={options.runner}"]
    annotate(job, mine, beam_options + shlex.split(options.beam_options), options.workers)
    reports = [report for report in job.read_reports(shards) if report is not None]
    if len(reports) < len(shards):
        print(f"{len(mine)} shards of this process are finished; {len(shards) - len(reports)} of others are not")
        return 0
    return _finish(options, job, shards, reports)


def _which_process(options: Run) -> tuple[int, int]:
    """(number of this process, how many there are)."""
    from sam_jax.parallel.start import find_process

    if options.runner != "DirectRunner":
        if options.processes not in (None, 1):
            raise UserError(f"--runner {options.runner} finds its own workers; leave --process and --processes out")
        return 0, 1
    if (options.process is None) != (options.processes is None):
        raise UserError(f"expected --process and --processes together, got {options.process} and {options.processes}")
    if options.process is None or options.processes is None:
        return find_process()
    if not 0 <= options.process < options.processes:
        raise UserError(f"expected --process in 0..{options.processes - 1}, got {options.process}")
    return options.process, options.processes


def _open(options: Run) -> Job:
    """Checks what can be checked before hours of work, and notes down settings and images, or compares them."""
    from sam_jax.engine.automatic.folder import Folder
    from sam_jax.engine.automatic.inputs import LIST, find_images, write_list
    from sam_jax.engine.automatic.parts import load_blur
    from sam_jax.engine.automatic.shard import Job
    from sam_jax.everything.folders import check_settings

    if options.blur:
        load_blur(options.blur)
    out = Folder.at(options.out)
    if options.format == "both" and not (out.is_local and options.processes in (None, 1)):
        raise UserError(
            "--format both takes one process and an --out on this machine; run sam-jax prepare on the tars instead"
        )
    settings = {
        "inputs": list(options.inputs),
        "shards": options.shards,
        "blur": options.blur,
        "model_digest": digest_model(options.generator.model),
        **options.generator.settings(),
    }
    if out.exists(SETTINGS):
        check_settings(out.read(SETTINGS).decode(), settings, f"{out.shown}/{SETTINGS}")
    if not (out.exists(SETTINGS) and out.exists(LIST)):
        listed_images = find_images(options.inputs, out)
        out.write(SETTINGS, json.dumps(settings, indent=1).encode())
        write_list(out, listed_images)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + _digest(out, LIST).encode()).hexdigest()
    return Job(out, options.generator, digest, options.blur, options.max_bad_fraction)


def digest_model(name_or_path: str) -> str:
    """SHA-256 of a checkpoint's file or files; empty for a name, which stands for one checkpoint for good."""
    path = Path(name_or_path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            return ""
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _digest(out: Folder, name: str) -> str:
    with out.reading(name) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _finish(options: Run, job: Job, shards: Sequence[Shard], reports: Sequence[ShardReport]) -> int:
    """The manifest, when all shards are there; the same whoever writes it."""
    from sam_jax.data.bad_records import BAD_ALWAYS_ALLOWED
    from sam_jax.engine.automatic.folder import WORK

    bad = [entry for report in reports for entry in report.bad]
    without_masks = [name for report in reports for name in report.without_masks]
    total = sum(shard.count for shard in shards)
    images, masks = (sum(getattr(report, name) for report in reports) for name in ("pictures", "masks"))
    manifest = {
        "pictures": images,
        "masks": masks,
        "without_masks": without_masks,
        "bad": bad,
        "shards": [
            {name: getattr(report, name) for name in ("tar", "bytes", "sha256", "pictures", "masks")}
            for report in reports
        ],
    }
    job.out.write(MANIFEST, json.dumps(manifest, indent=1).encode())
    job.out.remove_if_empty(WORK)
    empty = f", {len(without_masks)} more without masks" if without_masks else ""
    print(f"{masks} masks of {images} images in {len(reports)} tars{empty}, in {job.out.shown}")
    for reason, count in Counter(entry["reason"] for entry in bad).items():
        print(f"sam-jax: left out, {count} images: {reason}; see {job.out.shown}/{MANIFEST}", file=sys.stderr)
    if len(bad) > max(BAD_ALWAYS_ALLOWED, options.max_bad_fraction * total):
        raise UserError(f"{len(bad)} of {total} images can't be used; allow more with --max-bad-fraction")
    if options.format == "both":
        _prepare(Path(job.out.shown))
    return 1 if bad else 0


def _prepare(out: Path) -> Any:
    """ArrayRecord files of the tars, beside them."""
    from sam_jax.data.prepare import Prepare, prepare
    from sam_jax.data.prepared import find_prepared

    if not find_prepared(out):
        prepared = prepare(Prepare(out, out, format="sa1b"))
        print(f"{prepared.images} images with {prepared.masks} masks, in {prepared.path}")
