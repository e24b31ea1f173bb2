"""`sam-jax prepare`: data that training reads fast."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.bounds import CheckedFields, Fraction, Threads
from sam_jax.config import DataFormat, LabelValues
from sam_jax.data.beam import split_options


@dataclasses.dataclass(frozen=True)
class Prepare(CheckedFields):
    """Turns images with masks into files that training reads fast: TFDS, ArrayRecord.

    Every image is decoded once and every mask checked; what cannot be used is left out and listed in
    bad_records.jsonl. SA-1B is prepared by Apache Beam, a worker per tar; if it is stopped, the same command goes on.
    Example: sam-jax prepare sa1b_tars --out prepared --workers 16
    """

    source: tyro.conf.Positional[Path]
    """Folder or file: SA-1B tars, a COCO JSON, label maps, masks."""
    out: Path
    """Folder for the result, which is what --data.path of sam-jax train takes."""
    format: DataFormat = "auto"
    """Format of the source; auto: found out from what is there."""
    images: Path | None = None
    """Folder of the images, where they are not near their annotations."""
    label_values: LabelValues = "auto"
    """What the values of label maps stand for; auto: objects, if they look like it."""
    max_bad_fraction: Fraction = 0.01
    """Fraction of the records that may be unusable; more of them are an error."""
    workers: Threads = 1
    """Number of processes that prepare SA-1B on this machine."""
    beam_options: Annotated[str, tyro.conf.arg(metavar="OPTIONS")] = ""
    """Options of Beam's pipeline, to prepare SA-1B elsewhere, such as "--runner=FlinkRunner --flink_master=host:8081".
    All its workers must see source and result under the same names."""

    def run(self) -> None:
        """Writes the prepared data, and prints what was left out."""
        from sam_jax.data.prepare import prepare

        prepared = prepare(
            self.source,
            self.out,
            format=self.format,
            images=self.images,
            label_values=self.label_values,
            max_bad_fraction=self.max_bad_fraction,
            workers=self.workers,
            beam_options=split_options(self.beam_options),
        )
        left_out = "".join(f", {count} left out ({reason})" for reason, count in prepared.bad.items())
        print(f"{prepared.images} images with {prepared.masks} masks{left_out}, in {prepared.path}")
