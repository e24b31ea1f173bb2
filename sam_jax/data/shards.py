"""Writes SA-1B as ArrayRecord shards, by Apache Beam: a shard per tar file, each read and written by one worker.

A worker gets the name of a tar and writes one file; no image goes through Beam itself. So any runner will do, memory
does not grow with the data, and shards that are there need not be written again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from sam_jax.data.bad_records import PreparationReport
from sam_jax.data.beam import open_pipeline, watching
from sam_jax.data.sa1b import Sa1bSource
from sam_jax.errors import BadRecord
from sam_jax.files import read_json, remove, replacing, write_atomically
from sam_jax.progress import ProgressBar

PAIRS_PER_SHARD = 1000  # of a folder


@dataclasses.dataclass(frozen=True)
class RecordShard:
    """The part of the source that one worker reads, and the file that it writes; its report goes beside it, at last."""

    tars: tuple[Path, ...]
    pairs: tuple[tuple[Path, Path], ...]
    target: Path

    @property
    def report(self) -> Path:
        return self.target.with_suffix(".json")

    def fingerprint(self) -> str:
        """Returns a text that changes when the source does, so that a shard of an earlier source is not taken."""
        tars = [(str(tar.resolve()), tar.stat().st_size, tar.stat().st_mtime_ns) for tar in self.tars]
        return json.dumps([tars, [[str(path.resolve()) for path in pair] for pair in self.pairs]])

    def is_written(self) -> bool:
        if not (self.report.exists() and self.target.exists()):
            return False
        return read_json(self.report)["fingerprint"] == self.fingerprint()

    def read_report(self) -> PreparationReport:
        content = read_json(self.report)
        problems, mask_problems = (
            [BadRecord(*parts) for parts in content.get(kind, ())] for kind in ("problems", "mask_problems")
        )
        return PreparationReport(content["pictures"], content["masks"], problems, mask_problems)


def make_shards(tars: Sequence[Path], pairs: Sequence[tuple[Path, Path]], folder: Path) -> list[RecordShard]:
    """Returns a shard for each tar, and for each `PAIRS_PER_SHARD` pairs."""
    parts: list[tuple[tuple[Path, ...], tuple]] = [((tar,), ()) for tar in tars]
    parts += [((), tuple(pairs[i : i + PAIRS_PER_SHARD])) for i in range(0, len(pairs), PAIRS_PER_SHARD)]
    return [RecordShard(*part, folder / f"{number:06d}.array_record") for number, part in enumerate(parts)]


def write_shard(shard: RecordShard) -> None:
    """Writes the sound records of a shard, and then its report: images, masks and what was wrong."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from sam_jax.data.builders import features, to_record

    spec = features()
    source = Sa1bSource(shard.tars, shard.pairs)
    problems, mask_problems = list(source.problems), list[BadRecord]()
    images = masks = 0
    with replacing(shard.target) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")  # one image is read at a time
        for index in range(len(source)):
            try:
                example = source[index]
                record = to_record(example)
            except BadRecord as error:
                problems.append(error)
                continue
            writer.write(spec.serialize_example(record))
            mask_problems += example.left_out
            images += 1
            masks += len(record["masks"])
        writer.close()
    content = {
        "fingerprint": shard.fingerprint(),
        "pictures": images,
        "masks": masks,
        "problems": [problem.args for problem in problems],
        "mask_problems": [problem.args for problem in mask_problems],
    }
    write_atomically(shard.report, json.dumps(content))


def run_beam(shards: Sequence[RecordShard], options: Sequence[str], workers: int) -> None:
    """Writes the shards that are not written yet, with a progress bar.

    Args:
        options: options of Beam's pipeline, such as --runner=FlinkRunner, whose workers must all see the files under
            these names. Without a runner: Beam's own on this machine.
        workers: processes on this machine.

    Raises:
        MissingPackage: Beam is not installed.
    """
    todo = [shard for shard in shards if not shard.is_written()]
    for shard in todo:
        remove(shard.report)
    if not todo:
        return
    with ProgressBar(total=len(shards), unit="shard") as bar:

        def look() -> None:
            bar.update(sum(shard.report.exists() for shard in shards) - bar.n)

        with watching(look), open_pipeline(options, workers) as pipeline:
            import apache_beam as beam

            pipeline | beam.Create(todo) | beam.Reshuffle() | beam.Map(write_shard)
