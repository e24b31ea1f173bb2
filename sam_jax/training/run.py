"""What every training run does, whatever it trains: claims its folder, steps, logs, saves, stops and goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, Key
from PIL import Image
from tqdm import tqdm

from sam_jax.config import DataConfig
from sam_jax.errors import AlreadyExists, NonFiniteGradients, UserError
from sam_jax.files import replacing, write_atomically
from sam_jax.parallel.wrap import Wrapped
from sam_jax.training.step import TrainState
from sam_jax.training.watch import Clock, MetricsLog, peak_memory_gib
from sam_jax.types import Batch, Params

if TYPE_CHECKING:
    from grain import DatasetIterator

PREVIEW_IMAGES = 4
RECORD = "config.json"  # in a run's folder


class RunConfig(Protocol):
    """What a config says of the run itself."""

    @property
    def out(self) -> Path: ...
    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def steps(self) -> int: ...
    @property
    def max_skipped(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def keep_checkpoints(self) -> int: ...


class Checkpoints:
    """A run's checkpoints, written while later steps run: state, run's key, and the place in the data."""

    def __init__(self, out: Path, keep: int, program: Wrapped) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(out / "checkpoints", options=options)
        self._program = program

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # what is being written is written to its end

    def latest(self) -> tuple[TrainState, int, Key[Array, ""]] | None:
        """The placed state of the last checkpoint, the number of batches it has seen, and the run's key."""
        if self._manager.latest_step() is None:
            return None
        restore = {"state": ocp.args.StandardRestore(self._program.template), "data": ocp.args.JsonRestore()}
        restored = self._manager.restore(self._manager.latest_step(), args=ocp.args.Composite(**restore))
        key = jax.random.wrap_key_data(jnp.asarray(restored.data["key"], jnp.uint32))
        return self._program.place(restored.state), restored.data["batches"], key

    def save(self, step: int, state: TrainState, key: Key[Array, ""], *, force: bool) -> None:
        position = {"batches": step, "key": np.asarray(jax.random.key_data(key)).tolist()}
        saved = {"state": ocp.args.StandardSave(self._program.whole(state)), "data": ocp.args.JsonSave(position)}
        self._manager.save(step, args=ocp.args.Composite(**saved), force=force)


class Run:
    """A run from its last checkpoint, or its start, to its last step, with what is written and heard of meanwhile.

    Example:
        with Run(config, program, resume=resume) as run:
            state = run.start(params)
            state = run.steps(state, make_loader(..., first_batch=run.first_step), report, check)

    Attributes:
        first_step: steps that were taken before; known after `start`, as are the others.
        key: the run's.
        log: its metrics.
    """

    first_step: int
    key: Key[Array, ""]
    log: MetricsLog

    def __init__(self, config: RunConfig, program: Wrapped, *, resume: bool) -> None:
        self._config, self._program, self._resume = config, program, resume
        self._out = config.out.resolve()

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as stack:
            self._checkpoints = stack.enter_context(
                Checkpoints(self._out, self._config.keep_checkpoints, self._program)
            )
            self._stop = stack.enter_context(StopSignal())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, params: Params) -> TrainState:
        """The placed state of the last checkpoint if the run is resumed, else the first."""
        last = self._checkpoints.latest() if self._resume else None
        start = last or (self._program.init(params), 0, jax.random.key(self._config.seed))
        state, self.first_step, self.key = start
        self.log = MetricsLog(self._out, self.first_step, enabled=jax.process_index() == 0)
        self._stack.callback(self.log.close)
        return state

    def steps(
        self,
        state: TrainState,
        loader: DatasetIterator[Batch],
        report: Callable[[dict[str, Any], float], tuple[dict[str, Any], dict[str, str]]],
        check: Callable[[int, TrainState], None],
    ) -> TrainState:
        """Steps until `config.steps` or until it is asked to stop, with a progress bar; the last state is always saved.

        Args:
            state: placed; it is freed.
            loader: batches from `first_step` on; it is closed.
            report: a step's metrics and the seconds that a step takes -> values for the log, and what the bar shows.
            check: validates a state after a step, logs it and shows it.

        Returns:
            the last state, whole on every process.

        Raises:
            FloatingPointError: `max_skipped` updates in a row had no finite gradients.
        """
        config, clock, main = self._config, Clock(), jax.process_index() == 0
        progress = tqdm(total=config.steps, initial=self.first_step, unit="step", dynamic_ncols=True, disable=not main)
        with contextlib.closing(loader) as batches, progress as bar:
            for step in range(self.first_step + 1, config.steps + 1):
                with clock.waiting():
                    batch = next(batches)
                state, metrics = self._program.step(state, batch, self.key)
                bar.update()
                if step % config.log_every == 0:
                    metrics = jax.device_get(metrics)
                    if metrics["skipped"] >= config.max_skipped:
                        raise NonFiniteGradients(
                            f"{config.max_skipped} updates in a row had no finite gradients, up to step {step}; go on "
                            "from the last checkpoint with --resume and a lower optimizer.learning-rate"
                        )
                    seconds, waited = clock.look()
                    speed = {
                        "seconds_per_step": seconds,
                        "pictures_per_second": config.data.batch_size / seconds,
                        "data_wait_share": waited,
                        "peak_memory_gib": peak_memory_gib(),
                    }
                    values, shown = report(metrics, seconds)
                    self.log.write(step, values | speed)
                    bar.set_postfix(shown)
                stopping = step == config.steps or self._stop.requested(step)
                if step % config.validate_every == 0 or step == config.steps:
                    check(step, state)
                if step % config.save_every == 0 or stopping:
                    self._checkpoints.save(step, state, self.key, force=stopping)
                if stopping:
                    break
        return self._program.whole(state)


def save_preview(image: np.ndarray, out: Path, step: int) -> None:
    """An image of predictions into the run's folder."""
    path = out / "predictions" / f"{step:07d}.png"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG")


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step; a second one acts at once.

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

    def _request(self, number: int, frame: object) -> None:
        self._requested = True
        tqdm.write("stopping after this step; the run can be resumed")
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def refuse_other_run(out: Path, resume: bool) -> None:
    """Before anything is loaded: a folder that holds a run is for going on with it."""
    if (out / RECORD).exists() and not resume:
        raise AlreadyExists(f"{out} holds another run; say --resume to go on with it, or give another --out")


def claim_folder(out: Path, config: Any, resume: bool) -> None:
    """Makes the run's folder, or checks that it is this run's."""
    refuse_other_run(out, resume)  # again: one may have begun while the model was made
    record = out / RECORD
    if record.exists():
        model = type(config.model).from_json(json.dumps(json.loads(record.read_text())["model"]))
        if model != config.model:
            raise UserError(f"the run in {out} trains another model: {model}; this config says {config.model}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(dataclasses.asdict(config), default=str, indent=1))
