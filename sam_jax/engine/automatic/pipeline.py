"""The Beam pipeline: a model handler annotates each shard. No image passes through Beam itself."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from sam_jax.data.beam import POLL, open_pipeline, watching
from sam_jax.engine.automatic.folder import WORK, as_os_errors
from sam_jax.engine.automatic.inputs import Shard
from sam_jax.engine.automatic.shard import AnnotationJob, ShardReport, annotate_shard
from sam_jax.errors import EXPECTED_ERRORS, UserError
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.progress import ProgressBar

REMOTE_POLL = 30.0  # seconds between looks at an object store, each of which costs requests


class ShardAnnotator(ModelHandler[Shard, ShardReport, SamAutomaticMaskGenerator]):
    """Annotates shards: an example is a shard, and its prediction the shard's report.

    RunInference loads the generator once per worker, and keeps it as long as the worker runs. Images are batched inside
    the shard, where they are read ahead, in an order that a restart repeats.
    """

    def __init__(self, job: AnnotationJob) -> None:
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


def annotate(job: AnnotationJob, shards: Sequence[Shard], options: Sequence[str], workers: int) -> None:
    """Annotates the shards that are not finished, with a progress bar in images.

    Args:
        options: options of Beam's pipeline, such as --runner=FlinkRunner.
        workers: number of processes on this machine, each of which loads the model.

    Raises:
        UserError, OSError: raised by a worker on this machine; see `annotate_shard`.
    """
    todo = [shard for shard, report in zip(shards, job.read_reports(shards), strict=True) if report is None]
    if not todo:
        return
    progress = _Progress(job, shards, todo)
    try:
        every = POLL if job.out.is_local else REMOTE_POLL
        with progress.bar, watching(progress.update, every), open_pipeline(options, workers) as pipeline:
            pipeline | beam.Create(todo) | beam.Reshuffle() | RunInference(ShardAnnotator(job))
    except (RuntimeError, *EXPECTED_ERRORS) as error:  # Beam's own is a RuntimeError
        raise _own_error(error) from error


class _Progress:
    """Counts finished images by the files in the output folder: parts if it is local, else finished shards."""

    def __init__(self, job: AnnotationJob, shards: Sequence[Shard], todo: Sequence[Shard]) -> None:
        self.job, self.open = job, {shard.number: shard for shard in todo}
        self.finished = sum(shard.count for shard in shards) - sum(shard.count for shard in todo)
        initial = self.finished + self._parts()
        self.bar = ProgressBar(
            total=sum(shard.count for shard in shards), initial=initial, unit="image", smoothing=0.1, mininterval=0.5
        )

    def update(self) -> None:
        """Counts again, and moves the bar."""
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
    """Returns a worker's error from Beam's, which adds a step's name to the message or holds a traceback as text."""
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
