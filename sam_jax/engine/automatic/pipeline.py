"""The Beam pipeline: shards -> a model handler that annotates each. No image goes through Beam itself."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference
from tqdm import tqdm

from sam_jax.data.beam import POLL, open_pipeline, watching
from sam_jax.engine.automatic.folder import WORK, as_os_errors
from sam_jax.engine.automatic.inputs import Shard
from sam_jax.engine.automatic.shard import Job, ShardReport, annotate_shard
from sam_jax.errors import EXPECTED_ERRORS, UserError
from sam_jax.everything.generator import SamAutomaticMaskGenerator

POLL_ELSEWHERE = 30.0  # seconds: looking costs requests


class ShardAnnotator(ModelHandler[Shard, ShardReport, SamAutomaticMaskGenerator]):
    """RunInference loads the generator once per worker, and keeps it as long as the worker lives.

    An example is a shard, and its prediction the shard's report. Images are batched inside the shard, where they
    are read ahead, in an order that a restart repeats.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self.job = job

    def load_model(self) -> SamAutomaticMaskGenerator:
        return self.job.generator.load()

    def run_inference(
        self,
        batch: Sequence[Shard],
        model: SamAutomaticMaskGenerator,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[ShardReport]:
        with as_os_errors():
            return [annotate_shard(self.job, shard, model) for shard in batch]

    def get_metrics_namespace(self) -> str:
        return "sam_jax_engine"


def annotate(job: Job, shards: Sequence[Shard], options: Sequence[str], workers: int) -> None:
    """Writes the shards that are not finished, with a progress bar in images.

    Args:
        options: of Beam's pipeline, such as --runner=FlinkRunner.
        workers: processes on this machine, each with a model of its own.

    Raises:
        ValueError, OSError: what a worker on this machine raised; see `annotate_shard`.
    """
    todo = [shard for shard, report in zip(shards, job.read_reports(shards), strict=True) if report is None]
    if not todo:
        return
    progress = _Progress(job, shards, todo)
    try:
        every = POLL if job.out.is_local else POLL_ELSEWHERE
        with progress.bar, watching(progress.look, every), open_pipeline(options, workers) as pipeline:
            pipeline | beam.Create(todo) | beam.Reshuffle() | RunInference(ShardAnnotator(job))
    except (RuntimeError, *EXPECTED_ERRORS) as error:  # Beam's own is a RuntimeError
        raise _own_error(error) from error


class _Progress:
    """Counts images by what lies in the output folder: their parts on this machine, elsewhere whole shards."""

    def __init__(self, job: Job, shards: Sequence[Shard], todo: Sequence[Shard]) -> None:
        self.job, self.open = job, {shard.number: shard for shard in todo}
        self.finished = sum(shard.count for shard in shards) - sum(shard.count for shard in todo)
        there = self.finished + self._parts()
        self.bar = tqdm(
            total=sum(shard.count for shard in shards), initial=there, unit="image", smoothing=0.1, mininterval=0.5
        )

    def look(self) -> None:
        reports = set(self.job.out.names("reports"))
        for shard in list(self.open.values()):
            if shard.report.rpartition("/")[2] in reports:
                self.finished += self.open.pop(shard.number).count
        self.bar.update(max(0, self.finished + self._parts() - self.bar.n))

    def _parts(self) -> int:
        if not self.job.out.is_local:
            return 0
        active = [name for name in self.job.out.names(WORK) if name.isdigit() and int(name) in self.open]
        return sum(name.endswith(".part") for folder in active for name in self.job.out.names(f"{WORK}/{folder}"))


def _own_error(error: Exception) -> BaseException:
    """A worker's error without what Beam makes of it: a step's name after the message, or a traceback as text."""
    kinds: list[type] = [UserError, *UserError.__subclasses__()]
    mistakes = {kind.__name__ for kind in kinds}
    for line in reversed(f"{type(error).__name__}: {error}".splitlines()):
        match = re.fullmatch(r"(?:[\w.]+\.)?(\w+): (.*?)(?: \[while running .*)?", line.strip())
        if match and "KeyboardInterrupt" in match.groups():
            return KeyboardInterrupt()
        if match and match[1] in mistakes:
            return UserError(match[2])
        kind = getattr(builtins, match[1], None) if match else None
        if match and isinstance(kind, type) and issubclass(kind, OSError):
            return OSError(match[2])
    return error
