"""The training loop: data, step, validation, checkpoints. Reads top to bottom."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from sam_jax.checkpoints import load_mae_encoder
from sam_jax.checkpoints.format import save_checkpoint
from sam_jax.checkpoints.hub import load_model
from sam_jax.clip.config import ClipConfig
from sam_jax.config import SamConfig, TrainConfig
from sam_jax.data.loader import fixed_batches, local_part, make_loader
from sam_jax.data.sources import open_source
from sam_jax.errors import UserError
from sam_jax.modeling import init_params
from sam_jax.modeling.resize import resize_positions
from sam_jax.parallel.start import start_processes
from sam_jax.parallel.wrap import Wrapped, wrap
from sam_jax.training.embeddings import cache_embeddings
from sam_jax.training.flops import peak_flops, step_flops
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.run import PREVIEW_IMAGES, Run, claim_folder, refuse_other_run, save_preview
from sam_jax.training.step import TrainState, init_state, model_params, preview_step, train_step, validation_step
from sam_jax.training.text import add_text_projection, load_run_clip, with_text_prompt
from sam_jax.training.trainable import CLIP, encoder_is_frozen
from sam_jax.training.watch import draw_predictions, plot_curves
from sam_jax.types import Batch, Params


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Trains until `config.steps`, or until SIGTERM or Ctrl-C, after which `resume` goes on from the last step.

    Args:
        resume: continue the run in `config.out`; without it that folder must hold no run. Devices, processes and
            `parallel` may be others than before.

    Returns:
        path of the exported model, `model.safetensors` in `config.out`.

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
    config, params, clip = _initial_params(config)
    program, encoder = compile_program(config, params, clip)
    if config.finetune.cache_embeddings and encoder != "cached":
        raise UserError("expected a frozen image encoder with finetune.cache-embeddings; finetune.trainable has it")
    if main:
        claim_folder(out, config, resume)
    flops, peak = step_flops(config, encoder=encoder, clip=clip), peak_flops(jax.devices()[0])
    tqdm.write(
        f"{len(train_set)} images to train on, {len(validation_set)} to validate, "
        f"on {program.devices} x {jax.devices()[0].device_kind}; {flops / 1e12:.3g} TFLOP a step"
    )

    batch_args: dict[str, Any] = {
        "model": config.model,
        "config": config.data,
        "loss_size": config.loss.size,
        "seed": config.seed,
    }
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    whole_batches = fixed_batches(validation_set, config.validation_batches, **batch_args)
    validation_batches = [local_part(batch, **part) for batch in whole_batches]
    embeddings = None
    if config.finetune.cache_embeddings:
        embeddings = out / "embeddings"
        cache_embeddings(train_set, params, config, embeddings)
    place = {"embeddings": embeddings, **part}
    with Run(config, program, resume=resume) as run:
        state = run.start(params)
        del params

        def report(metrics: dict[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
            values = summarize(metrics)
            speed = {
                "masks_per_second": float(metrics["masks"]) / seconds,
                "tflops_per_second": flops / seconds / 1e12,
            }
            if peak is not None:
                speed["model_flop_utilisation"] = flops / seconds / (peak * program.devices)
            shown = {"loss": f"{values['loss']:.3f}", "iou": f"{values['iou'][0]:.3f}-{values['iou'][-1]:.3f}"}
            return values | speed, shown

        def check(step: int, state: TrainState) -> None:
            values = validate(program.evaluate, state, validation_batches, run.key)
            run.log.write(step, {f"validation_{name}": value for name, value in values.items()})
            rounds = " ".join(f"{value:.3f}" for value in values["iou"])
            tqdm.write(f"step {step}: validation loss {values['loss']:.3f}, mIoU after each round {rounds}")
            images = _preview(program, state, whole_batches[0], run.key)
            if main:
                save_preview(images, out, step)
                plot_curves(out)

        loader = make_loader(train_set, first_batch=run.first_step, **batch_args, **place)
        state = run.steps(state, loader, report, check)
    path = out / "model.safetensors"
    exported = jax.jit(functools.partial(model_params, config=config))(state)
    if main:
        save_checkpoint(path, jax.device_get(exported), config.model)
        tqdm.write(f"step {int(state.step)} of {config.steps}; model in {path}")
    return path


def compile_program(config: TrainConfig, params: Params, clip: ClipConfig | None = None) -> tuple[Wrapped, str]:
    """The run's functions on its devices, and whether the encoder is "trained", "frozen" or "cached".

    Args:
        clip: of a run that trains the text prompt; the params of its image tower are in `params` too.
    """
    model, key = config.model, jax.random.key(config.seed)
    make = functools.partial(make_optimizer, config.optimizer, model)
    init = functools.partial(init_state, key=key, config=config, make_optimizer=make)
    trained = jax.eval_shape(init, params).params
    if config.data.batch_size % config.accumulate:
        raise UserError(
            f"expected a batch that divides into {config.accumulate} parts (accumulate), "
            f"got {config.data.batch_size} images"
        )
    program = wrap(
        init,
        functools.partial(train_step, config=config, optimizer=make(trained), clip=clip),
        functools.partial(validation_step, config=config, clip=clip),
        functools.partial(preview_step, config=config, clip=clip),
        params,
        config.parallel,
        config.data.batch_size // config.accumulate,
    )
    if not encoder_is_frozen(trained):
        return program, "trained"
    return program, "cached" if config.finetune.cache_embeddings else "frozen"


def summarize(metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Metrics per round -> losses, means over the rounds, and the IoU after each round."""
    return {
        **{name: float(metrics[name].mean()) for name in ("loss", "focal", "dice", "iou_error")},
        "iou": [float(value) for value in metrics["iou"]],
        "oracle_iou": float(metrics["oracle_iou"][0]),
        **{name: float(metrics[name]) for name in ("grad_norm", "skipped") if name in metrics},
    }


def validate(evaluate: Callable, state: Any, batches: list[Batch], key: jax.Array) -> dict[str, Any]:
    """Means over all masks of the validation batches; the same prompts every time."""
    sums = [jax.device_get(evaluate(state, batch, jax.random.fold_in(key, i))) for i, batch in enumerate(batches)]
    total = jax.tree.map(lambda *values: np.sum(values, 0), *sums)
    return summarize({name: value / max(total["masks"], 1) for name, value in total.items()})


def _preview(program: Wrapped, state: Any, batch: Batch, key: jax.Array) -> np.ndarray:
    """What the model makes of a few validation images, beside the truth."""
    few = jax.tree.map(lambda x: x[:PREVIEW_IMAGES], batch)
    return draw_predictions(few, *jax.device_get(program.preview(state, few, key)))


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


def _initial_params(config: TrainConfig) -> tuple[TrainConfig, Params, ClipConfig | None]:
    """The params that a run starts from, its config with the model that it trains, and that of its CLIP."""
    clip, key = load_run_clip(config), jax.random.key(config.seed)

    def prepared(model: SamConfig) -> SamConfig:
        return model if clip is None else with_text_prompt(model, clip.config)

    if config.init_from is not None:
        start = load_model(config.init_from)
        own = prepared(start.config)
        config = dataclasses.replace(config, model=own if config.model_from_init else prepared(config.model))
        params = start.params if clip is None else add_text_projection(start.params, own, key)
        params = resize_positions(params, own, config.model)
    elif config.model_from_init:
        raise UserError("expected init-from, the name or path of the model to train, with model-from-init; got none")
    else:
        config = dataclasses.replace(config, model=prepared(config.model))
        params = align_cross_attention(init_params(config.model, key))
    if config.init_encoder_from is not None:
        params = load_mae_encoder(config.init_encoder_from, params, config.model)
    if clip is not None:
        params = params | {CLIP: {"visual": clip.params["visual"]}}
    return config, jax.tree.map(jnp.asarray, params), None if clip is None else clip.config
