"""Prepares data: writes any source as a TFDS data set of ArrayRecord files, checked record by record."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_jax.config import DataFormat, LabelValues
from sam_jax.data.bad_records import BadRecords, PreparationReport
from sam_jax.data.examples import Source
from sam_jax.data.sa1b import find_sa1b, warn_if_unfinished
from sam_jax.data.shards import make_shards, run_beam
from sam_jax.data.sources import detect_format, open_splits
from sam_jax.data.training_sets import TRAINING_SETS, read_training_sets, split_validation
from sam_jax.errors import AlreadyExists, BadRecord, MissingPackage, UserError
from sam_jax.files import (
    finding_full_disk,
    holding,
    make_folder,
    open_to_write,
    read_json,
    remove,
    replacing,
    write_atomically,
)

if TYPE_CHECKING:
    from sam_jax.data.builders import SourceBuilder

BAD_RECORDS = "bad_records.jsonl"
PREPARED = "prepared.json"  # among the unfinished files, once the data set is whole: what is returned for it


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """Where prepared data lies, and how much was written."""

    path: Path
    images: int
    masks: int
    bad: Mapping[str, int]  # reason -> records


def prepare(
    source: Path,
    out: Path,
    *,
    format: DataFormat = "auto",
    images: Path | None = None,
    label_values: LabelValues = "auto",
    max_bad_fraction: float = 0.01,
    workers: int = 1,
    beam_options: Sequence[str] = (),
) -> PreparedData:
    """Writes a data set to `out/NAME/VERSION`, and the records that can't be used to `out/bad_records.jsonl`.

    The data set lies under another name until it is whole.

    Args:
        source: folder or file, see `sam_jax.data.sources`.
        format: format of the source; "auto" finds it out.
        images: folder of the images, where they are not near their annotations.
        label_values: what the values of label maps are.
        max_bad_fraction: fraction of the records that may be unusable; more of them are an error.
        workers: processes that prepare SA-1B on this machine.
        beam_options: options of Beam's pipeline, which prepares SA-1B.

    Raises:
        AlreadyExists: the data set is there already.
        InUse: another process prepares data there.
        OSError: it cannot be written. The same call goes on once there is space.
        UserError: there is nothing to read, or too many records are bad; they are listed all the same.
        MissingPackage: tensorflow_datasets or Beam is not installed.
    """
    try:
        from sam_jax.data import builders
    except ImportError as error:
        raise MissingPackage(f"preparing data takes more packages ({error}); pip install 'sam_jax[train]'") from error

    format = detect_format(source, format, images, tuple(TRAINING_SETS))
    if format == "prepared":
        raise UserError(f"{source} is prepared already; train with --data.path {source}")
    name, version = builders.BUILDERS[format].name, str(builders.SourceBuilder.VERSION)
    target, partial = out / name / version, out / f".partial_{name}"
    with holding(out, "prepare"), finding_full_disk(out):
        if target.exists():
            return _clean_up(source, target, partial)
        make_folder(partial)
        remove(partial / PREPARED)
        remove(partial / "tfds")  # of a run that was killed
        if format == "sa1b":
            report = _prepare_shards(source, images, out, partial, max_bad_fraction, beam_options, workers)
        else:
            splits = _open_splits(source, format, images, label_values)
            options: dict[str, Any] = {"max_bad_fraction": max_bad_fraction, "data_dir": partial / "tfds"}
            report = _prepare_splits(builders.BUILDERS[format](splits=splits, **options), out)
        bad = dict(Counter(problem.reason for problem in report.left_out))
        counts = {"source": str(source.resolve()), "images": report.images, "masks": report.masks, "bad": bad}
        write_atomically(partial / PREPARED, json.dumps(counts))
        make_folder(target.parent)
        (partial / "tfds" / name / version).rename(target)
        return _clean_up(source, target, partial)


def _clean_up(source: Path, target: Path, partial: Path) -> PreparedData:
    """Removes what is not needed any more beside a data set that is whole.

    Raises:
        AlreadyExists: nothing says that it was made of this source, by this run or by one that was killed here.
    """
    counts = read_json(partial / PREPARED) if (partial / PREPARED).exists() else {}
    if counts.get("source") != str(source.resolve()):
        if partial.is_dir() and not any(partial.iterdir()):  # of a run that was killed when all was done
            remove(partial)
        raise AlreadyExists(f"{target} is there already; give another --out, or remove it")
    for path in partial.iterdir():
        if path.name != PREPARED:  # the last to go: a kill before that is followed by this once more
            remove(path)
    remove(partial)
    return PreparedData(target, counts["images"], counts["masks"], counts["bad"])


def _open_splits(
    source: Path, format: DataFormat, images: Path | None, label_values: LabelValues
) -> Mapping[str, Source]:
    if format != "named":
        return open_splits(source, format, images, label_values)
    names = tuple(name for name in TRAINING_SETS if (source / name).is_dir())
    train, validation = split_validation(read_training_sets(source, names))
    return {"train": train, "validation": validation}


def _prepare_splits(builder: SourceBuilder, out: Path) -> PreparationReport:
    """Prepares splits with the builder of their format, in this process."""
    try:
        _run(builder)
    finally:
        _list_problems(out, builder.report.left_out)
    return builder.report


def _prepare_shards(
    source: Path,
    images: Path | None,
    out: Path,
    partial: Path,
    max_bad_fraction: float,
    beam_options: Sequence[str],
    workers: int,
) -> PreparationReport:
    """Prepares SA-1B by Beam; finished shards stay in `partial` for the next run."""
    from sam_jax.data import builders

    warn_if_unfinished(source)
    tars, pairs = find_sa1b(source, images)
    if not tars and not pairs:
        raise UserError(f"expected tar files, or images with JSON files of the same names, in {source}")
    folder = partial / "shards"
    make_folder(folder)
    shards = make_shards(tars, pairs, folder)
    run_beam(shards, beam_options, workers)
    report, written = PreparationReport(), []
    for shard in shards:
        part = shard.read_report()
        report.images += part.images
        report.masks += part.masks
        report.problems += part.problems
        report.mask_problems += part.mask_problems
        if part.images:
            written.append(shard.target)
    _list_problems(out, report.left_out)
    total = report.images + len(report.problems)
    check = BadRecords(max_bad_fraction, total, in_a_row=total + 1)
    for problem in report.problems:
        check.count(problem)
    if not written:
        raise UserError(f"no record of {source} can be used; see {out / BAD_RECORDS}")
    _run(builders.SamSa1b(shards=written, data_dir=partial / "tfds"))
    return report


def _run(builder: Any) -> None:
    """Runs a builder without TFDS's messages, which name the folder that is to be renamed."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record")


def _list_problems(out: Path, problems: Sequence[BadRecord]) -> None:
    """Writes one JSON object per line for each bad record or mask; no file if there is none."""
    path = out / BAD_RECORDS
    if not problems:
        remove(path)
        return
    with replacing(path) as temporary, open_to_write(temporary) as file:
        for problem in problems:
            line = {"reason": problem.reason, "where": problem.where, "detail": problem.detail}
            file.write(json.dumps(line) + "\n")
