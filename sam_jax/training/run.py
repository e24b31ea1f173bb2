"""What every training run does, whatever it trains: claims its folder, steps, logs, saves, stops and goes on."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, Key
from PIL import Image
from tqdm import tqdm

from sam_jax.config import DataConfig
from sam_jax.files import replacing, write_atomically
from sam_jax.parallel.wrap import Wrapped
from sam_jax.training.step import TrainState
from sam_jax.training.watch import Clock, MetricsLog, peak_memory_gib
from sam_jax.types import Batch

PREVIEW_PICTURES = 4


class RunConfig(Protocol):
    """What a config says of the run itself."""

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


def run_steps(
    config: RunConfig,
    program: Wrapped,
    state: TrainState,
    batches: Iterator[Batch],
    key: Key[Array, ""],
    checkpoints: Checkpoints,
    log: MetricsLog,
    stop: StopSignal,
    *,
    first_step: int,
    report: Callable[[dict[str, Any], float], tuple[dict[str, Any], dict[str, str]]],
    check: Callable[[int, TrainState], None],
) -> TrainState:
    """Steps until `config.steps` or until it is asked to stop, with a progress bar; the last state is always saved.

    Args:
        state: placed; it is freed.
        stop: entered.
        first_step: steps that were taken before.
        report: a step's metrics and the seconds that a step takes -> values for the log, and what the bar shows.
        check: validates a state after a step, logs it and shows it.

    Raises:
        FloatingPointError: `max_skipped` updates in a row had no finite gradients.
    """
    clock, main = Clock(), jax.process_index() == 0
    with tqdm(total=config.steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not main) as bar:
        for step in range(first_step + 1, config.steps + 1):
            with clock.waiting():
                batch = next(batches)
            state, metrics = program.step(state, batch, key)
            bar.update()
            if step % config.log_every == 0:
                metrics = jax.device_get(metrics)
                if metrics["skipped"] >= config.max_skipped:
                    raise FloatingPointError(
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
                log.write(step, values | speed)
                bar.set_postfix(shown)
            stopping = step == config.steps or stop.requested(step)
            if step % config.validate_every == 0 or step == config.steps:
                check(step, state)
            if step % config.save_every == 0 or stopping:
                checkpoints.save(step, state, key, force=stopping)
            if stopping:
                break
    return state


def save_preview(image: np.ndarray, out: Path, step: int) -> None:
    """A picture of predictions into the run's folder."""
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


def claim_folder(out: Path, config: Any, resume: bool) -> None:
    """Makes the run's folder, or checks that it is this run's."""
    record = out / "config.json"
    if record.exists():
        if not resume:
            raise FileExistsError(f"{out} holds another run; say --resume to go on with it, or give another --out")
        model = json.loads(record.read_text())["model"]
        if model != json.loads(config.model.to_json()):
            raise ValueError(f"the run in {out} trains another model: {model}; this config says {config.model}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(dataclasses.asdict(config), default=str, indent=1))
