"""The training loop: data, step, validation, checkpoints. Reads top to bottom."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from sam_jax.checkpoint import load_checkpoint, save_checkpoint
from sam_jax.config import TrainConfig
from sam_jax.data.pipeline import BatchLoader, make_batch
from sam_jax.data.training_sets import read_training_sets, split_validation
from sam_jax.modeling import init_params
from sam_jax.modeling.resize import resize_positions
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import TrainState, train_step, validation_step
from sam_jax.types import Batch, Params


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains until `config.steps`, or until SIGTERM or Ctrl-C, after which `resume` goes on from the last step.

    Args:
        resume: continue the run in `config.out`; without it that folder must hold no run.

    Returns:
        path of the exported model, `model.safetensors` in `config.out`.

    Raises:
        FileExistsError: `config.out` holds a run and `resume` is False.
        ValueError: the run in `config.out` was started with another model.
    """
    out = config.out.resolve()
    _claim_folder(out, config, resume)
    train_set, validation_set = split_validation(read_training_sets(config.data.path, config.data.datasets))
    tqdm.write(f"{len(train_set)} pictures to train on, {len(validation_set)} to validate, on {jax.devices()[0]}")

    params = _initial_params(config)
    optimizer = make_optimizer(config.optimizer, config.model, params)
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    run_key = jax.random.key(config.seed)
    step_fn = jax.jit(functools.partial(train_step, config=config, optimizer=optimizer), donate_argnums=0)
    validate_fn = jax.jit(functools.partial(validation_step, config=config))

    batch_args: dict[str, Any] = {
        "model": config.model,
        "config": config.data,
        "loss_size": config.loss.size,
        "seed": config.seed,
    }
    validation_batches = [
        make_batch(validation_set, i, augment=False, **batch_args) for i in range(config.validation_batches)
    ]
    options = ocp.CheckpointManagerOptions(max_to_keep=config.keep_checkpoints)
    with ocp.CheckpointManager(out / "checkpoints", options=options) as manager, StopSignal() as stop:
        if resume and manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        first_step = int(state.step)
        log = MetricsLog(out / "metrics.jsonl")
        with (
            BatchLoader(train_set, first_step, workers=config.data.workers, **batch_args) as loader,
            tqdm(total=config.steps, initial=first_step, unit="step", dynamic_ncols=True) as bar,
        ):
            started = time.perf_counter()
            for step, batch in zip(range(first_step + 1, config.steps + 1), loader, strict=False):
                state, metrics = step_fn(state, batch, run_key)
                bar.update()
                if step % config.log_every == 0:
                    values = summarize(jax.device_get(metrics))
                    seconds = (time.perf_counter() - started) / (step - first_step)
                    log.write({"step": step, "seconds_per_step": round(seconds, 4)} | values)
                    bar.set_postfix({name: f"{values[name]:.3f}" for name in ("loss", "iou_first", "iou_last")})
                stopping = stop.requested or step == config.steps
                if step % config.validate_every == 0 or step == config.steps:
                    values = validate(validate_fn, state.params, validation_batches, run_key)
                    log.write({"step": step} | {f"validation_{name}": value for name, value in values.items()})
                    tqdm.write(f"step {step}: " + "  ".join(f"{k} {v:.3f}" for k, v in values.items()))
                if step % config.save_every == 0 or stopping:
                    manager.save(step, args=ocp.args.StandardSave(state), force=stopping)
                if stopping:
                    break
        manager.wait_until_finished()
    path = out / "model.safetensors"
    save_checkpoint(path, jax.device_get(state.params), config.model)
    tqdm.write(f"step {int(state.step)} of {config.steps}; model in {path}")
    return path


def summarize(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    """Per-round metrics -> numbers: sums of losses' means, the first and last round's IoU."""
    return {
        "loss": float(metrics["loss"].mean()),
        "focal": float(metrics["focal"].mean()),
        "dice": float(metrics["dice"].mean()),
        "iou_error": float(metrics["iou_error"].mean()),
        "oracle_iou_first": float(metrics["oracle_iou"][0]),
        "iou_first": float(metrics["iou"][0]),
        "iou_last": float(metrics["iou"][-1]),
    } | ({"grad_norm": float(metrics["grad_norm"])} if "grad_norm" in metrics else {})


def validate(validate_fn: Callable, params: Params, batches: list[Batch], key: jax.Array) -> dict[str, float]:
    """Means over all masks of the validation batches; the same prompts every time."""
    totals: dict[str, float] = {}
    masks = 0
    for i, batch in enumerate(batches):
        metrics, count = jax.device_get(validate_fn(params, batch, jax.random.fold_in(key, i)))
        masks += int(count)
        for name, value in summarize(metrics).items():
            totals[name] = totals.get(name, 0.0) + value * int(count)
    return {name: total / max(masks, 1) for name, total in totals.items()}


class MetricsLog:
    """Appends one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step; a second one acts at once."""

    def __enter__(self) -> StopSignal:
        self.requested = False
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        tqdm.write("stopping after this step; the run can be resumed")
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _claim_folder(out: Path, config: TrainConfig, resume: bool) -> None:
    """Makes the run's folder, or checks that it is this run's."""
    record = out / "config.json"
    if record.exists():
        if not resume:
            raise FileExistsError(f"{out} holds another run; say --resume to go on with it, or give another --out")
        model = json.loads(record.read_text())["model"]
        if model != json.loads(config.model.to_json()):
            raise ValueError(f"the run in {out} trains another model: {model}; this config says {config.model}")
    out.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(config), default=str, indent=1))
    temporary.replace(record)


def align_cross_attention(params: Params) -> Params:
    """Makes queries and keys of the decoder's cross-attentions start equal.

    Their product is then close to a multiple of the identity, and a click attends from the first step to where it is:
    the Fourier features of near positions are alike. With independent projections a model from scratch first has to
    find that, which took it hundreds of steps of empty masks.
    """
    flat = flatten_dict(params, sep="/")
    for name in flat:
        if "token_to_image/k_proj" in name or "image_to_token/k_proj" in name:
            flat[name] = jnp.array(flat[name.replace("k_proj", "q_proj")])  # a copy: the step donates its buffers
    return unflatten_dict(flat, sep="/")


def _initial_params(config: TrainConfig) -> Params:
    if config.init_from is None:
        return align_cross_attention(init_params(config.model, jax.random.key(config.seed)))
    params, model = load_checkpoint(config.init_from)
    return jax.tree.map(jnp.asarray, resize_positions(params, model, config.model))
