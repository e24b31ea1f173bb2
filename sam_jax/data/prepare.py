"""`sam-jax prepare`: any source -> a TFDS data set of ArrayRecord files, checked record by record."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from sam_jax.config import DataFormat, LabelValues
from sam_jax.data.bad_records import BadRecords, Report
from sam_jax.data.examples import Source
from sam_jax.data.sa1b import find_sa1b
from sam_jax.data.shards import make_shards, run_beam
from sam_jax.data.sources import detect_format, open_splits
from sam_jax.data.training_sets import TRAINING_SETS, read_training_sets, split_validation
from sam_jax.errors import AlreadyExists, BadRecord, MissingPackage, UserError
from sam_jax.files import replacing

BAD_RECORDS = "bad_records.jsonl"


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turns images with masks into files that training reads fast: TFDS, ArrayRecord.

    Every image is decoded once and every mask checked; what cannot be used is left out and listed in
    bad_records.jsonl. SA-1B is prepared by Apache Beam, a worker per tar; if it is stopped, the same command goes on.
    Example: sam-jax prepare sa1b_tars --out prepared --workers 16
    """

    source: tyro.conf.Positional[Path]
    """Folder or file: SA-1B tars, a COCO JSON, label maps, masks."""
    out: Path
    """Folder for the result; train with --data.path of it."""
    format: DataFormat = "auto"
    """What the source is; auto looks."""
    images: Path | None = None
    """Folder of the images, where they are not near their annotations."""
    label_values: LabelValues = "auto"
    """What the values of label maps are."""
    max_bad_fraction: float = 0.01
    """More unusable records are an error."""
    workers: int = 1
    """Processes that prepare SA-1B on this machine."""
    beam_options: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    """For Beam's pipeline, to prepare SA-1B elsewhere, such as "--runner=FlinkRunner --flink_master=host:8081". All its
    workers must see source and result under the same names."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was written."""

    path: Path
    images: int
    masks: int
    bad: Mapping[str, int]  # reason -> records


def prepare(options: Prepare) -> Prepared:
    """Writes `options.out/NAME/VERSION`, under another name until it is whole, and `options.out/bad_records.jsonl`.

    Raises:
        FileExistsError: it is there already.
        FileNotFoundError, ValueError: nothing to read; too many bad records, which are listed all the same.
        ImportError: tensorflow_datasets or Beam is not installed.
    """
    try:
        from sam_jax.data import builders
    except ImportError as error:
        raise MissingPackage(f"preparing data takes more packages ({error}); pip install 'sam_jax[train]'") from error

    format = detect_format(options.source, options.format, options.images, tuple(TRAINING_SETS))
    if format == "prepared":
        raise UserError(f"{options.source} is prepared already; train with --data.path {options.source}")
    name, version = builders.BUILDERS[format].name, str(builders.SourceBuilder.VERSION)
    target = options.out / name / version
    if target.exists():
        raise AlreadyExists(f"{target} is there already; give another --out, or remove it")
    partial = options.out / f".partial_{name}"
    partial.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial / "tfds", ignore_errors=True)  # of a run that was killed
    if format == "sa1b":
        report = _prepare_shards(options, partial)
    else:
        report = _prepare_splits(options, format, partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    (partial / "tfds" / name / version).rename(target)
    shutil.rmtree(partial)
    bad = dict(Counter(problem.reason for problem in report.problems))
    return Prepared(target, report.images, report.masks, bad)


def _prepare_splits(options: Prepare, format: DataFormat, partial: Path) -> Report:
    """By the builder of the format, in this process."""
    from sam_jax.data import builders

    splits: Mapping[str, Source]
    if format == "named":
        names = tuple(name for name in TRAINING_SETS if (options.source / name).is_dir())
        splits = dict(
            zip(("train", "validation"), split_validation(read_training_sets(options.source, names)), strict=True)
        )
    else:
        splits = open_splits(options.source, format, options.images, options.label_values)
    builder = builders.BUILDERS[format](
        splits=splits, max_bad_fraction=options.max_bad_fraction, data_dir=partial / "tfds"
    )
    try:
        _run(builder)
    finally:
        _list_problems(options.out, builder.report.problems)
    return builder.report


def _prepare_shards(options: Prepare, partial: Path) -> Report:
    """By Beam; finished shards stay in `partial` for the next run."""
    from sam_jax.data import builders

    tars, pairs = find_sa1b(options.source, options.images)
    if not tars and not pairs:
        raise UserError(f"expected tar files, or images with JSON files of the same names, in {options.source}")
    folder = partial / "shards"
    folder.mkdir(exist_ok=True)
    shards = make_shards(tars, pairs, folder)
    run_beam(shards, shlex.split(options.beam_options), options.workers)
    report, written = Report(), []
    for shard in shards:
        part = shard.read_report()
        report.images += part.images
        report.masks += part.masks
        report.problems += part.problems
        if part.images:
            written.append(shard.target)
    _list_problems(options.out, report.problems)
    total = report.images + len(report.problems)
    check = BadRecords(options.max_bad_fraction, total, in_a_row=total + 1)
    for problem in report.problems:
        check.count(problem)
    if not written:
        raise UserError(f"no record of {options.source} can be used; see {options.out / BAD_RECORDS}")
    _run(builders.SamSa1b(shards=written, data_dir=partial / "tfds"))
    return report


def _run(builder: Any) -> None:
    """Without TFDS's messages, which name the folder that is to be renamed."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record")


def _list_problems(out: Path, problems: Sequence[BadRecord]) -> None:
    """One JSON object per line; no file if there is none."""
    path = out / BAD_RECORDS
    if not problems:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("w") as file:
        for problem in problems:
            line = {"reason": problem.reason, "where": problem.where, "detail": problem.detail}
            file.write(json.dumps(line) + "\n")
