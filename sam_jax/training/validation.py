"""Validation during a run: the same images and prompts every time."""

from __future__ import annotations

from pathlib import Path

import jax
from jaxtyping import Array, Key

from sam_jax.parallel.wrap import Wrapped
from sam_jax.progress import ProgressBar
from sam_jax.training.preview import save_preview
from sam_jax.training.step import TrainState
from sam_jax.training.task import TrainingTask
from sam_jax.training.watch import MetricsLog, plot_curves
from sam_jax.types import Batch

PREVIEW_IMAGES = 4


class Validation:
    """Scores states of a run on fixed batches, logs what comes out, and draws a few predictions.

    Args:
        batches: this process's parts of the global batches.
        preview: a global batch, the same in all processes, whose first images are drawn.
        log: the run's.
        out: the run's folder.
    """

    def __init__(
        self, task: TrainingTask, program: Wrapped, batches: list[Batch], preview: Batch, log: MetricsLog, out: Path
    ) -> None:
        self._task, self._program, self._batches, self._log, self._out = task, program, batches, log, out
        self._preview = jax.tree.map(lambda x: x[:PREVIEW_IMAGES], preview)

    def run(self, step: int, state: TrainState, key: Key[Array, ""]) -> float:
        """Returns the score of a state after a step; higher is better.

        Args:
            key: the run's; prompts are drawn with it, so that they are the same after every step.
        """
        task, program = self._task, self._program
        metrics = [
            jax.device_get(program.evaluate(state, batch, jax.random.fold_in(key, i)))  # one batch on the devices
            for i, batch in enumerate(self._batches)
        ]
        values = task.summarize_validation(metrics)
        ProgressBar.write(f"step {step}: validation {task.describe(values)}")
        self._log.write(step, {f"validation_{name}": value for name, value in values.items()})
        preview = jax.device_get(program.preview(state, self._preview, key))
        if jax.process_index() == 0:
            save_preview(task.draw(self._preview, preview), self._out, step)
            plot_curves(self._out, *task.curves)
        return task.score(values)
