"""A detector's training run: data, step, validation, checkpoints, as `sam_jax.training.loop` has them for SAM."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sam_jax.checkpoints import load_mae_encoder
from sam_jax.checkpoints.detector import save_detector
from sam_jax.checkpoints.hub import load_model
from sam_jax.data.loader import fixed_batches, local_part, make_loader
from sam_jax.data.sources import open_source
from sam_jax.detection.detector import Detections, init_detector
from sam_jax.errors import UserError
from sam_jax.modeling.resize import resize_positions
from sam_jax.ops.draw import draw_masks
from sam_jax.parallel.start import start_processes
from sam_jax.parallel.wrap import Wrapped, wrap
from sam_jax.training.detector.config import DetectorTrainConfig
from sam_jax.training.detector.step import preview_step, train_step, validation_step
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.run import PREVIEW_IMAGES, Run, claim_folder, refuse_other_run, save_preview
from sam_jax.training.step import TrainState, init_state, model_params
from sam_jax.types import Batch, Params


def train_detector(config: DetectorTrainConfig, *, resume: bool = False) -> Path:
    """Trains until `config.steps`, or until SIGTERM or Ctrl-C, after which `resume` goes on from the last step.

    Args:
        resume: continue the run in `config.out`; without it that folder must hold no run.

    Returns:
        path of the exported detector, `model.safetensors` in `config.out`.

    Raises:
        FileExistsError: `config.out` holds a run and `resume` is False.
        ValueError: the run in `config.out` was started with another model; devices that do not fit the batch.
        FloatingPointError: `max_skipped` updates in a row had no finite gradients.
    """
    start_processes(config.parallel)
    out, main = config.out.resolve(), jax.process_index() == 0
    if main:
        refuse_other_run(out, resume)
    train_set, validation_set = open_source(config.data)
    params = initial_params(config)
    program = compile_program(config, params)
    if main:
        claim_folder(out, config, resume)
    tqdm.write(
        f"{len(train_set)} images to train on, {len(validation_set)} to validate, "
        f"on {program.devices} x {jax.devices()[0].device_kind}"
    )
    batch_args: dict[str, Any] = {
        "model": config.model.encoder,
        "config": config.data,
        "loss_size": config.mask_size,
        "seed": config.seed,
    }
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    whole_batches = fixed_batches(validation_set, config.validation_batches, **batch_args)
    validation_batches = [local_part(batch, **part) for batch in whole_batches]
    with Run(config, program, resume=resume) as run:
        state = run.start(params)
        del params

        def report(metrics: dict[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
            values = {name: float(value) for name, value in metrics.items()}
            return values, {"loss": f"{values['loss']:.3f}"}

        def check(step: int, state: TrainState) -> None:
            values = validate(program, state, validation_batches, run.key)
            run.log.write(step, {f"validation_{name}": value for name, value in values.items()})
            tqdm.write(
                f"step {step}: validation loss {values['loss']:.3f}; boxes found with IoU 0.5: "
                f"{values['found']:.1%}, with 0.75: {values['found_closely']:.1%}"
            )
            few = jax.tree.map(lambda x: x[:PREVIEW_IMAGES], whole_batches[0])
            found = jax.device_get(program.preview(state, few, run.key))
            if main:
                save_preview(draw_detections(few, found), out, step)

        loader = make_loader(train_set, first_batch=run.first_step, **batch_args, **part)
        state = run.steps(state, loader, report, check)
    path = out / "model.safetensors"
    exported = jax.jit(functools.partial(model_params, config=config))(state)
    if main:
        save_detector(path, jax.device_get(exported), config.model)
        tqdm.write(f"step {int(state.step)} of {config.steps}; detector in {path}")
    return path


def compile_program(config: DetectorTrainConfig, params: Params) -> Wrapped:
    """The run's functions on its devices."""
    make = functools.partial(make_optimizer, config.optimizer, config.model.encoder)
    init = functools.partial(init_state, key=jax.random.key(config.seed), config=config, make_optimizer=make)
    trained = jax.eval_shape(init, params).params
    return wrap(
        init,
        functools.partial(train_step, config=config, optimizer=make(trained)),
        functools.partial(validation_step, config=config),
        functools.partial(preview_step, config=config),
        params,
        config.parallel,
        config.data.batch_size,
    )


def initial_params(config: DetectorTrainConfig) -> Params:
    """Random params, with the image encoder of a SAM model or of a masked autoencoder where the config names one.

    Raises:
        ValueError: both are named, or an encoder of another size.
    """
    if config.init_from is not None and config.init_encoder_from is not None:
        raise UserError("expected one start of the image encoder, got init-from and init-encoder-from")
    encoder, learned = config.model.encoder, {}
    if config.init_from is not None:
        start = load_model(config.init_from)
        new = dataclasses.replace(start.config, image_size=encoder.image_size)
        whole = resize_positions(start.params, start.config, new)["image_encoder"]
        learned = {name: value for name, value in whole.items() if not name.startswith("neck_")}
        wanted = jax.eval_shape(functools.partial(init_detector, config.model), jax.random.key(0))["image_encoder"]
        if jax.tree.map(jnp.shape, learned) != jax.tree.map(jnp.shape, wanted):
            raise UserError(
                f"expected an image encoder like that of model.encoder ({encoder.name}), {config.init_from} has "
                f"another ({start.config.name}); change model.encoder or init-from"
            )
    params = init_detector(config.model, jax.random.key(config.seed))
    if learned:
        params = params | {"image_encoder": learned}
    if config.init_encoder_from is not None:
        params = load_mae_encoder(config.init_encoder_from, params, encoder)
    return jax.tree.map(jnp.asarray, params)


def validate(program: Wrapped, state: Any, batches: list[Batch], key: jax.Array) -> dict[str, float]:
    """Mean losses of the batches, and the shares of their objects that were found; the same draws every time."""
    results = [jax.device_get(program.evaluate(state, b, jax.random.fold_in(key, i))) for i, b in enumerate(batches)]
    values = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
    objects = max(values.pop("objects"), 1e-9)
    return {name: value / objects if name.startswith("found") else value for name, value in values.items()}


def draw_detections(batch: Batch, found: Detections, most: int = 12) -> np.ndarray:
    """A row per image: the true boxes, and the best detections."""
    assert batch.images is not None
    rows = []
    for image, boxes, valid, ours, is_there in zip(
        batch.images, batch.boxes, batch.valid, found.boxes, found.valid, strict=True
    ):
        there = np.flatnonzero(np.asarray(is_there))[:most]
        pair = [draw_masks(image, [], boxes=[tuple(box) for box in side]) for side in (boxes[valid], ours[there])]
        rows.append(np.concatenate(pair, 1))
    return np.concatenate(rows)
