"""A run's checkpoints: written while later steps run, checked when they are read, the last ones and the best kept."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Key, UInt32
from orbax.checkpoint import checkpoint_managers

from sam_jax.errors import BadRecord, UserError
from sam_jax.files import finding_full_disk, make_folder, read_json
from sam_jax.parallel.gather import sync_processes
from sam_jax.parallel.wrap import Wrapped
from sam_jax.training.step import TrainState

logger = logging.getLogger(__name__)

UNSCORED = -math.inf
DAMAGED = "damaged_checkpoints"  # in a run's folder, where those that cannot be read are put


class Restored(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState  # placed on the devices
    step: int  # steps that were taken, and so batches that were seen
    key: Key[Array, ""]  # the run's


class Checkpoints:
    """A run's checkpoints, written while later steps run: state, run's key, and the place in the data.

    The last ones are kept, and the one with the highest score by validation.
    """

    def __init__(self, out: Path, keep: int, program: Wrapped) -> None:
        self._out, self._folder, self._program = out, out / "checkpoints", program
        self._manager = open_checkpoints(self._folder, keep)
        best = best_step(self._manager)
        self._best = UNSCORED if best is None else _score_of(self._manager, best)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with finding_full_disk(self._folder):
            self._manager.close()  # what is being written is written to its end

    def latest(self) -> Restored | None:
        """Returns what the last checkpoint holds that can be read; None without any checkpoint.

        Later ones, which are damaged, are moved out of the way, with a warning that names them.

        Raises:
            UserError: there are checkpoints, and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps:
            try:
                restored = self._restore(step)
            except Exception as error:  # of Orbax and the libraries below it: files that are damaged or not there
                problems[step] = (str(error) or type(error).__name__).partition("\n")[0][:300]
                continue
            if problems:
                self._put_aside(problems, step)
            return restored
        if problems:
            raise UserError(
                f"the checkpoints of steps {steps} in {self._folder} cannot be read, the last one because of: "
                f"{problems[steps[0]]}; put back a copy of one, or start anew in another --out"
            )
        return None

    def _restore(self, step: int) -> Restored:
        template = {"state": ocp.args.StandardRestore(self._program.template), "data": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**template))
        check_state(restored.state, restored.data)
        key = jax.random.wrap_key_data(jnp.asarray(restored.data["key"], jnp.uint32))
        return Restored(self._program.place(restored.state), restored.data["batches"], key)

    def _put_aside(self, problems: dict[int, str], step: int) -> None:
        with sync_processes():
            if jax.process_index() == 0:
                make_folder(self._out / DAMAGED)
                for damaged, problem in problems.items():
                    (self._folder / str(damaged)).replace(self._out / DAMAGED / str(damaged))
                    logger.warning(
                        "the checkpoint of step %d cannot be read (%s) and was moved to %s; going on from step %d",
                        damaged,
                        problem,
                        self._out / DAMAGED,
                        step,
                    )
        self._manager.reload()

    def is_best(self, score: float | None) -> bool:
        """Whether a score is higher than those of all checkpoints; one that is not a number never is."""
        return score is not None and score > self._best

    def save(
        self, step: int, state: TrainState, key: Key[Array, ""], score: float | None = None, *, force: bool
    ) -> None:
        """Saves a state.

        Args:
            score: by validation, higher is better; None if the state was not validated.
            force: save also where the manager would not.

        Raises:
            OSError: the disk is full, now or when the one before was written.
        """
        whole = self._program.whole(state)
        position = {"batches": step, "key": np.asarray(jax.random.key_data(key)).tolist(), "checksum": checksum(whole)}
        saved = {"state": ocp.args.StandardSave(whole), "data": ocp.args.JsonSave(position)}
        metrics = {} if score is None or math.isnan(score) else {"score": score}
        with finding_full_disk(self._folder):
            self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics, force=force)
        self._best = max(self._best, read_score(metrics))


def checksum(state: Any) -> int:
    """Returns the sum of the bits of all arrays in a tree, read as integers, modulo 2^32.

    The files of a checkpoint have none that covers the numbers: a bit that was turned on disk would give another model.
    The sum depends neither on the devices that hold the arrays nor on their order.
    """
    return int(_sum_bits(state))


@jax.jit
def _sum_bits(state: Any) -> UInt32[Array, ""]:
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        bits = leaf.astype(unsigned) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, unsigned)
        total += bits.astype(jnp.uint32).sum(dtype=jnp.uint32)
    return total


def check_state(state: Any, data: dict[str, Any]) -> None:
    """Compares a state with the checksum that was saved beside it; checkpoints of earlier versions have none.

    Raises:
        UserError: they differ.
    """
    if data.get("checksum", found := checksum(state)) != found:
        raise UserError("its numbers are not those that were saved: the checksum differs")


def read_score(metrics: dict[str, float]) -> float:
    """Returns the score that was saved with a checkpoint, and one below all others if it was not validated."""
    return metrics.get("score", UNSCORED)


def best_step(manager: ocp.CheckpointManager) -> int | None:
    """Returns the step whose checkpoint has the highest score; None if no checkpoint was validated.

    Args:
        manager: of `open_checkpoints`.
    """
    step = manager.best_step()
    return None if step is None or _score_of(manager, step) == UNSCORED else step


def _score_of(manager: ocp.CheckpointManager, step: int) -> float:
    return read_score(manager.metrics(step) or {})


def open_checkpoints(folder: Path, keep: int | None = None, **options: Any) -> ocp.CheckpointManager:
    """Returns a manager that knows the best checkpoint.

    Args:
        keep: last checkpoints to keep besides it; None: all.
        options: of the manager.

    Raises:
        UserError: a file that says when a checkpoint was made, or its score, is damaged.
    """
    logging.getLogger("absl").addFilter(_not_of_orbax)
    for path in folder.glob("*/metrics/metrics"):
        try:
            read_json(path)
        except BadRecord as error:
            raise UserError(f"{error}; remove that file: its checkpoint then counts as not validated") from error
    last = checkpoint_managers.LatestN(keep)
    best = checkpoint_managers.BestN(get_metric_fn=read_score, n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([last, best])
    best_known = ocp.CheckpointManagerOptions(best_fn=read_score, preservation_policy=policy)
    try:
        return ocp.CheckpointManager(folder, options=best_known, **options)
    except OSError:  # no space, no permission
        raise
    except Exception as error:  # of Orbax: a _CHECKPOINT_METADATA of something else
        reason = str(error).partition("\n")[0][:300]
        raise UserError(
            f"the checkpoints in {folder} cannot be listed ({reason}): of those in "
            f"{', '.join(sorted(path.parent.name for path in folder.glob('*/_CHECKPOINT_METADATA')))} a file "
            "_CHECKPOINT_METADATA is damaged; move that checkpoint elsewhere"
        ) from error


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Leaves out Orbax's errors: they come back as exceptions too, and it logs a traceback for each of its threads."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname
