"""`sam-jax engine run`: everything mode over any number of images, written as tars like SA-1B's."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sam_jax.bounds import CheckedFields, Count, CountOrNone, Fraction, Threads
from sam_jax.commands.results import explain_empty
from sam_jax.data.beam import split_options
from sam_jax.errors import UserError
from sam_jax.everything.options import PAPER, DatasetOptions


@dataclasses.dataclass(frozen=True)
class EngineRun(CheckedFields):
    """Annotates images without people: everything mode, written as a data set like SA-1B.

    Stop or kill it at any time: the same command goes on, and ends with the same bytes as if it had never been stopped.
    The tars train as they are (sam-jax train ... --data.path OUT), or after sam-jax prepare OUT.
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
    """What is written: tars, or both them and a TFDS data set of ArrayRecord files, as from sam-jax prepare."""
    shards: Count | None = None
    """Number of tars; by default one for each 1000 images."""
    blur: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Function that hides faces and plates, from RGB uint8 (H, W, 3) to the same. Masks are found before, in the
    original pixels; only what it returns is written."""
    max_bad_fraction: Fraction = 0.01
    """Fraction of the images that may be unusable; more of them are an error."""
    runner: Literal["DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner"] = "DirectRunner"
    """Where Beam runs: this machine, or a cluster whose workers see inputs, model and out under the same names;
    PortableRunner: any job server of Beam's."""
    beam_options: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    """Options of Beam's pipeline, such as --beam-options="--flink_master=host:8081" or "--job_endpoint=host:8099"."""
    workers: Threads = 1
    """Number of processes on this machine, each with a model of its own. One keeps all accelerators of a host busy."""
    process: CountOrNone | None = None
    """Number of this host, from 0, among several without a cluster: it takes its part of the shards. By default TPU
    pods, SLURM and Open MPI are detected."""
    processes: Count | None = None
    """Number of hosts, with --process."""
    generator: tyro.conf.OmitArgPrefixes[DatasetOptions] = PAPER

    def run(self) -> int:
        """Annotates the images, and prints what there is; returns 1 if some could not be used."""
        from sam_jax.engine.automatic.folder import Folder
        from sam_jax.engine.automatic.run import MANIFEST, annotate_images

        process, processes = self._find_process()
        out = Folder.at(self.out)
        if self.format == "both" and not (out.is_local and self.processes in (None, 1)):
            raise UserError(
                "--format both takes one process and an --out on this machine; run sam-jax prepare on the tars instead"
            )
        runner = [] if self.runner == "DirectRunner" else [f"--runner={self.runner}"]
        manifest = annotate_images(
            self.inputs,
            self.out,
            self.generator,
            shards=self.shards,
            blur=self.blur,
            max_bad_fraction=self.max_bad_fraction,
            workers=self.workers,
            beam_options=[*runner, *split_options(self.beam_options)],
            process=process,
            processes=processes,
        )
        if isinstance(manifest, int):
            print(f"this process has finished its shards; {manifest} of others are not")
            return 0
        print(f"{manifest.masks} masks of {manifest.images} images in {manifest.tars} tars, in {out.shown}")
        if manifest.without_masks:
            print(explain_empty(len(manifest.without_masks), manifest.dropped.describe(self.generator.config())))
        for reason, count in Counter(entry["reason"] for entry in manifest.bad).items():
            print(f"sam-jax: left out, {count} images: {reason}; see {out.shown}/{MANIFEST}", file=sys.stderr)
        manifest.check_bad(self.max_bad_fraction)
        if self.format == "both":
            _prepare(Path(out.shown))
        return 1 if manifest.bad else 0

    def _find_process(self) -> tuple[int, int]:
        """Returns the number of this process, and how many there are."""
        from sam_jax.parallel.start import find_process

        if self.runner != "DirectRunner":
            if self.processes not in (None, 1):
                raise UserError(f"--runner {self.runner} finds its own workers; leave --process and --processes out")
            return 0, 1
        if (self.process is None) != (self.processes is None):
            raise UserError(f"expected --process and --processes together, got {self.process} and {self.processes}")
        if self.process is None or self.processes is None:
            return find_process()
        if not 0 <= self.process < self.processes:
            raise UserError(f"expected --process in 0..{self.processes - 1}, got {self.process}")
        return self.process, self.processes


def _prepare(out: Path) -> None:
    """Writes ArrayRecord files of the tars, beside them."""
    from sam_jax.data.prepare import prepare
    from sam_jax.data.prepared import find_prepared

    if not find_prepared(out):
        prepared = prepare(out, out, format="sa1b")
        print(f"{prepared.images} images with {prepared.masks} masks, in {prepared.path}")
