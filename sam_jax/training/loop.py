"""The training loop, for a SAM and for a detector. Reads top to bottom."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sam_jax.config import RunConfig, SamConfig, TrainConfig
from sam_jax.data.examples import Source
from sam_jax.data.loader import check_batch_fits, fixed_batches, local_part, make_loader
from sam_jax.data.sources import open_source
from sam_jax.errors import NonFiniteGradients, WrongType
from sam_jax.files import holding
from sam_jax.parallel.start import start_processes
from sam_jax.parallel.wrap import Wrapped, wrap
from sam_jax.progress import ProgressBar
from sam_jax.training.checkpoints import Checkpoints, Restored
from sam_jax.training.detector.config import DetectorTrainConfig
from sam_jax.training.detector.task import start_detector
from sam_jax.training.embeddings import cache_embeddings
from sam_jax.training.encoded_views import cache_views
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.run import StopSignal, check_packages, claim_folder, refuse_other_run
from sam_jax.training.sam import start_sam
from sam_jax.training.step import init_state, model_params
from sam_jax.training.task import TrainingTask
from sam_jax.training.validation import Validation
from sam_jax.training.watch import Clock, MetricsLog, Trace
from sam_jax.types import Params


class TrainResult(NamedTuple):
    """How far a run came."""

    path: Path  # of the exported model
    step: int  # the last that was taken
    finished: bool  # False: it was asked to stop, and can be resumed


def train(config: RunConfig, *, resume: bool = False) -> TrainResult:
    """Trains until `config.steps`, or until SIGTERM or Ctrl-C, after which `resume` goes on from the last step.

    Args:
        config: a `TrainConfig` or a `DetectorTrainConfig`, which says what is trained.
        resume: continue the run in `config.out`; without it that folder must hold no run. Devices, processes and
            `parallel` may be others than before.

    Returns:
        where the exported model is, `model.safetensors` in `config.out`, and whether the run has finished.

    Raises:
        AlreadyExists: `config.out` holds a run and `resume` is False.
        InUse: another process trains in `config.out`.
        UserError: the run in `config.out` was started with another model, or other params learn; devices that do not
            fit the batch; data or a model that cannot be read; no mask that could be used.
        MissingPackage: a package is not installed that training takes.
        NonFiniteGradients: `max_skipped` updates in a row had no finite gradients.
        KeyboardInterrupt: Ctrl-C or SIGTERM before the first step. What was encoded is kept.
    """
    start_processes(config.parallel)
    out, main = config.out.resolve(), jax.process_index() == 0
    if main:
        refuse_other_run(out, resume)
    check_packages(["grain", "matplotlib", *(["array_record"] if config.finetune.cache_views else [])])

    sources = open_source(config.data)
    task, params = start_task(config)
    check_batch_fits(config.data, task.frame.image_size)
    program = compile_program(task, params)
    with holding(out, "training") if main else contextlib.nullcontext(), StopSignal() as stop:
        if main:
            claim_folder(out, task.config, resume)
        return _train(task, params, program, sources, out, resume, stop)


def _train(
    task: TrainingTask,
    params: Params,
    program: Wrapped,
    sources: tuple[Source, Source],
    out: Path,
    resume: bool,
    stop: StopSignal,
) -> TrainResult:
    """Trains in a folder that is this run's. The arguments are those of `train`, read and compiled."""
    config, main = task.config, jax.process_index() == 0
    train_set, validation_set = sources
    ProgressBar.write(
        f"{len(train_set)} images to train on, {len(validation_set)} to validate, "
        f"on {program.devices} x {jax.devices()[0].device_kind}"
        + ("" if task.flops is None else f"; {task.flops / 1e12:.3g} TFLOP a step")
    )

    batch_args: dict[str, Any] = {
        "model": task.frame,
        "config": config.data,
        "loss_size": task.mask_size,
        "seed": config.seed,
    }
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    validation_batches = fixed_batches(validation_set, config.validation_batches, **batch_args)
    own_batches = [local_part(batch, **part) for batch in validation_batches]
    embeddings = out / "embeddings" if config.finetune.cache_embeddings else None
    if embeddings is not None:
        assert isinstance(task.frame, SamConfig), "a detector's start refuses it"
        cache_embeddings(train_set, params, task.frame, config, embeddings, stop.check)
    views = None
    if config.finetune.cache_views:
        assert isinstance(task.config, TrainConfig), "a detector's start refuses it"
        views = cache_views(train_set, params, task.config, config.finetune.cache_folder or out / "views", stop.check)

    with Checkpoints(out, config.keep_checkpoints, program) as checkpoints:
        state, first_step, key = (checkpoints.latest() if resume else None) or Restored(
            program.init(params), 0, jax.random.key(config.seed)
        )
        del params
        loader = make_loader(
            train_set, first_batch=first_step, embeddings=embeddings, views=views, **batch_args, **part
        )
        with (
            contextlib.closing(loader) as batches,
            MetricsLog(out, first_step, enabled=main) as log,
            Trace(out, config.profile_steps if main else None) as trace,
            ProgressBar(
                total=config.steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not main
            ) as bar,
        ):
            validation = Validation(task, program, own_batches, validation_batches[0], log, out)
            if first_step == 0:
                validation.run(0, state, key)
            clock = Clock(config.data.batch_size, program.devices, task.flops)
            step_key, step = program.replicate(key), first_step
            for step in range(first_step + 1, config.steps + 1):
                with clock.waiting():
                    batch = next(batches)
                trace.start(step)
                with jax.transfer_guard("disallow"):  # a transfer that nobody asked for would wait for the device
                    state, metrics = program.step(state, batch, step_key)
                trace.stop(step, metrics)
                bar.update()

                if step % config.log_every == 0:
                    metrics = jax.device_get(metrics)
                    if metrics["skipped"] >= config.max_skipped:
                        raise NonFiniteGradients(
                            f"{config.max_skipped} updates in a row had no finite gradients, up to step {step}; go on "
                            "from the last checkpoint with --resume and a lower optimizer.learning-rate"
                        )
                    values = task.summarize(metrics)
                    log.write(step, values | clock.speed(float(metrics[task.count])))
                    bar.set_postfix_str(task.describe(values))

                stopping = step == config.steps or stop.requested(step)
                score = None
                if step % config.validate_every == 0 or step == config.steps:
                    score = validation.run(step, state, key)
                if step % config.save_every == 0 or stopping or checkpoints.is_best(score):
                    checkpoints.save(step, state, key, score, force=stopping)
                if stopping:
                    break
        state = program.whole(state)

    path = out / "model.safetensors"
    exported = jax.jit(functools.partial(model_params, config=config))(state)
    if main:
        task.save(path, jax.device_get(exported))
        ProgressBar.write(f"step {step} of {config.steps}; model in {path}")
    return TrainResult(path, step, step >= config.steps)


def start_task(config: RunConfig) -> tuple[TrainingTask, Params]:
    """Returns what a config trains, and the params that the run starts from."""
    if isinstance(config, TrainConfig):
        return start_sam(config)
    if isinstance(config, DetectorTrainConfig):
        return start_detector(config)
    raise WrongType(f"expected a TrainConfig or a DetectorTrainConfig, got {type(config).__name__}")


def compile_program(task: TrainingTask, params: Params) -> Wrapped:
    """Returns the run's functions on its devices.

    Args:
        params: of the whole model, or their shapes.

    Raises:
        UserError: devices that do not fit the batch.
    """
    config = task.config
    make = functools.partial(make_optimizer, config.optimizer, task.encoder)
    init = functools.partial(init_state, key=jax.random.key(config.seed), config=config, make_optimizer=make)
    trained = jax.eval_shape(init, params).params
    return wrap(
        init,
        functools.partial(task.train_step, optimizer=make(trained)),
        task.validation_step,
        task.preview_step,
        params,
        config.parallel,
        task.images_at_once,
    )
