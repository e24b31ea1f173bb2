"""A run's folder, its checkpoints, and the signal that stops it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, Key
from orbax.checkpoint import checkpoint_managers

from sam_jax.errors import AlreadyExists, MissingPackage, UserError
from sam_jax.files import make_folder, read_json, write_atomically
from sam_jax.parallel.wrap import Wrapped
from sam_jax.progress import ProgressBar
from sam_jax.training.step import TrainState

RECORD = "config.json"  # in a run's folder
UNSCORED = -math.inf
# The fields of a config that the params and moments in a checkpoint follow from; of OPTIONAL, whether they are None.
FIXED = re.compile(r"(model\..*|finetune\.(trainable|lora_rank|lora_targets)|text\.clip)")
OPTIONAL = ("ema_decay", "optimizer.clip_norm")


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
        self._manager = ocp.CheckpointManager(out / "checkpoints", options=checkpoint_options(keep))
        self._program = program
        best = best_step(self._manager)
        self._best = UNSCORED if best is None else read_score(self._manager.metrics(best))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # what is being written is written to its end

    def latest(self) -> Restored | None:
        """Returns what the last checkpoint holds; None without one."""
        step = self._manager.latest_step()
        if step is None:
            return None
        restore = {"state": ocp.args.StandardRestore(self._program.template), "data": ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**restore))
        except Exception as error:  # of Orbax: another tree, other shapes, damaged files
            raise UserError(
                f"the checkpoint of step {step} in {self._manager.directory} is damaged, or of a run whose config "
                f"differs in what is trained, such as optimizer, EMA or finetune: {error}"
            ) from error
        key = jax.random.wrap_key_data(jnp.asarray(restored.data["key"], jnp.uint32))
        return Restored(self._program.place(restored.state), restored.data["batches"], key)

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
        """
        position = {"batches": step, "key": np.asarray(jax.random.key_data(key)).tolist()}
        saved = {"state": ocp.args.StandardSave(self._program.whole(state)), "data": ocp.args.JsonSave(position)}
        metrics = {} if score is None or math.isnan(score) else {"score": score}
        self._manager.save(step, args=ocp.args.Composite(**saved), metrics=metrics, force=force)
        self._best = max(self._best, read_score(metrics))


def read_score(metrics: dict[str, float]) -> float:
    """Returns the score that was saved with a checkpoint, and one below all others if it was not validated."""
    return metrics.get("score", UNSCORED)


def best_step(manager: ocp.CheckpointManager) -> int | None:
    """Returns the step whose checkpoint has the highest score; None if no checkpoint was validated.

    Args:
        manager: with `checkpoint_options`.
    """
    step = manager.best_step()
    return None if step is None or read_score(manager.metrics(step)) == UNSCORED else step


def checkpoint_options(keep: int | None = None) -> ocp.CheckpointManagerOptions:
    """Options of a manager that knows the best checkpoint.

    Args:
        keep: last checkpoints to keep besides it; None: all.
    """
    last = checkpoint_managers.LatestN(keep)
    best = checkpoint_managers.BestN(get_metric_fn=read_score, n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([last, best])
    return ocp.CheckpointManagerOptions(best_fn=read_score, preservation_policy=policy)


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step or image; a second one acts at once.

    Of several processes all stop after the same step: JAX tells the others of a SIGTERM to one.
    """

    def __enter__(self) -> StopSignal:
        self._several = jax.process_count() > 1
        self._requested = False
        signals = () if self._several else (signal.SIGTERM, signal.SIGINT)
        self._previous = {s: signal.signal(s, self._request) for s in signals}
        return self

    def requested(self, step: int) -> bool:
        """To be asked by all processes after every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def check(self) -> None:
        """To be called between images that are encoded before the first step.

        Raises:
            KeyboardInterrupt: this process was asked to stop.
        """
        if self._requested:
            raise KeyboardInterrupt

    def _request(self, number: int, frame: object) -> None:
        self._requested = True
        ProgressBar.write("stopping after this step or image; the run can be resumed with --resume")
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def refuse_other_run(out: Path, resume: bool) -> None:
    """Before anything is loaded: a folder that holds a run is for going on with it."""
    if (out / RECORD).exists() and not resume:
        raise AlreadyExists(f"{out} holds another run; say --resume to go on with it, or give another --out")


def claim_folder(out: Path, config: Any, resume: bool) -> None:
    """Writes the config into the run's folder, if it is this run's.

    Raises:
        AlreadyExists: there is a run, and `resume` is False.
        UserError: the run's checkpoints do not fit the config, or its record cannot be used. Nothing is written.
    """
    refuse_other_run(out, resume)  # again: one may have begun while the model was made
    record = out / RECORD
    fields = dataclasses.asdict(config) | {"model": config.model.to_fields()}
    text = json.dumps(fields, default=str, indent=1)
    if record.exists():
        _check_resumed(out, read_json(record), json.loads(text))
    make_folder(out)
    write_atomically(record, text)


def _check_resumed(out: Path, before: Any, now: dict[str, Any]) -> None:
    """Refuses another config than the run's where its checkpoints would not fit; says which other fields differ.

    Args:
        before, now: the configs as JSON. What only one of them has is of another version of this package.
    """
    if not (isinstance(before, dict) and isinstance(before.get("model"), dict)):
        raise UserError(f"expected the config of a run in {out / RECORD}, found something else; restore that file")
    old, new = (flatten_dict(fields, sep=".") for fields in (before, now))
    changed = {
        name: f"{name.replace('_', '-')} {new[name]} (was {old[name]})"
        for name in new
        if name in old and old[name] != new[name] and name != "out"
    }
    refused = [
        name
        for name in changed
        if FIXED.fullmatch(name) or (name in OPTIONAL and (old[name] is None) != (new[name] is None))
    ]
    others = ", ".join(text for name, text in changed.items() if name not in refused)
    if refused:
        raise UserError(
            f"the checkpoints of the run in {out} do not fit another {', '.join(changed[name] for name in refused)}; "
            f"give what it was, or another --out for a new run"
            + (f". Other fields that differ, which would be taken: {others}" if others else "")
        )
    if others:
        ProgressBar.write(f"the run goes on with other {others}")


def check_packages(names: Sequence[str]) -> None:
    """Refuses a run that would miss a package later on, after hours maybe.

    Raises:
        MissingPackage: one is not installed.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise MissingPackage(f"training takes {', '.join(missing)} too; pip install 'sam_jax[train]'")
