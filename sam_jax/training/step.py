"""The training step: one pure function of a state and a global batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from sam_jax.clip.config import ClipConfig
from sam_jax.clip.network import embed_images
from sam_jax.config import RunConfig, TrainConfig
from sam_jax.modeling import decode_masks, encode_image, encode_prompts, normalize_images
from sam_jax.modeling.image_encoder import finish_maps
from sam_jax.prompting.simulate import first_prompts, image_pixels, next_points, round_schedule
from sam_jax.prompting.text import object_views
from sam_jax.training.losses import segmentation_loss
from sam_jax.training.optimizer import next_learning_rate
from sam_jax.training.trainable import CLIP, join_params, split_params, without_clip
from sam_jax.types import PAD, AnyArray, Batch, Params, Prompts

TEXT_DRAWS = 4  # folded into a step's key for what only text prompts draw, so that nothing else is drawn otherwise


class TrainState(NamedTuple):
    """All that a run must save to be resumed, but for its position in the data."""

    params: Params  # those that learn
    frozen: Params  # the rest
    opt_state: optax.OptState
    ema: Params | None  # moving average of `params`
    step: Int[Array, ""]
    skipped: Int[Array, ""]  # updates in a row that were left out because their gradients are not finite


def init_state(
    params: Params, key: Key[Array, ""], config: RunConfig, make_optimizer: Callable[[Params], Any]
) -> TrainState:
    """Returns a run's state at step 0, from the params of a whole model."""
    trained, frozen = split_params(params, config.finetune, key)
    opt_state = make_optimizer(trained).init(trained)
    ema = None if config.ema_decay is None else jax.tree.map(jnp.copy, trained)
    return TrainState(trained, frozen, opt_state, ema, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def model_params(state: TrainState, config: RunConfig) -> Params:
    """Returns the params of the whole model, for use: averaged where the run keeps an average."""
    return without_clip(run_params(state, config))


def run_params(state: TrainState, config: RunConfig) -> Params:
    """Returns `model_params` together with those of the CLIP that embeds objects, if there is one."""
    return join_params(state.params if state.ema is None else state.ema, state.frozen, config.finetune)


def update_state(
    state: TrainState, grads: Params, config: RunConfig, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Shaped[Array, "..."]]]:
    """Returns the next state from the gradients of the params that learn, and metrics of the update.

    An update whose gradients are not finite is left out: the step counts, and nothing else changes. The loop stops the
    run when too many are left out in a row; `optax.apply_if_finite` would let bad updates through from then on, and
    would add counters to the optimizer state that saved runs do not have.

    Returns:
        the state; `learning_rate`, `grad_norm` and `skipped`, the updates that were left out in a row.
    """
    learning_rate = next_learning_rate(config.optimizer, state.opt_state)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None
    if state.ema is not None:
        assert config.ema_decay is not None
        ema = optax.incremental_update(params, state.ema, 1.0 - config.ema_decay)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    before = (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state, ema), before
    )
    state = TrainState(params, state.frozen, opt_state, ema, state.step + 1, skipped)
    return state, {"learning_rate": learning_rate, "grad_norm": grad_norm, "skipped": skipped}


class Rounds(NamedTuple):
    """The results of R rounds on a batch, with N slots for points."""

    terms: dict[str, Float[Array, "R B Q"]]  # loss, focal, dice, iou_error, iou, oracle_iou
    points: Float[Array, "B Q N 2"]  # all clicks in the end, input frame
    labels: Int[Array, "B Q N"]
    first_logits: Float[Array, "B Q l l"]  # the mask with the highest predicted IoU after the first prompt
    last_logits: Float[Array, "B Q l l"]  # the mask after the last round


def resize_logits(logits: Float[Array, "*batch l l"], side: int) -> Float[Array, "*batch {side} {side}"]:
    """Resizes logits bilinearly, as PyTorch does with align_corners=False and no antialias."""
    if logits.shape[-1] == side:
        return logits
    return jax.image.resize(logits, (*logits.shape[:-2], side, side), "bilinear", antialias=False)


def draw_per_image(function: Callable, key: Key[Array, ""], numbers: Int[Array, " B"], *batched: Any) -> Any:
    """Calls `function(key, *batched)` for each image with a key of its own, folded from its number.

    So what is drawn for an image does not depend on which images share its device.
    """

    def one(number: Int[Array, ""], *row: Any) -> Any:
        result = function(jax.random.fold_in(key, number), *jax.tree.map(lambda x: x[None], row))
        return jax.tree.map(lambda x: x[0], result)

    return jax.vmap(one)(numbers, *batched)


def run_rounds(
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    config: TrainConfig,
    *,
    training: bool,
    clip: ClipConfig | None = None,
    numbers: Int[Array, " B"] | None = None,
) -> Rounds:
    """Encodes each image once and runs all rounds of prompts on it.

    Round 0 has one prompt and asks for three masks; of these the one with the highest predicted IoU is fed back. Every
    later round carries that mask's logits as a prompt, is hence no longer ambiguous, and asks for the single mask. With
    `loss.single_mask_first` the first prompt asks for it too; that adds to the loss alone.

    With a CLIP the first prompt may be the embedding of the object, as of a text; it stays for the later rounds.

    Args:
        params: of the whole model, and of the CLIP's image tower under "clip".
        clip: config of that tower; None: no text prompts.
        numbers: of the images in the global batch, of which `batch` is a part; None: it is all of it.
    """
    model, dtype, remat = config.model, jnp.dtype(config.dtype), config.remat and training
    side, low_res = config.loss.size, model.low_res_size
    prompt_key, schedule_key, drop_key, rounds_key = jax.random.split(key, 4)
    numbers = jnp.arange(len(batch.sizes)) if numbers is None else numbers
    truth = batch.masks.astype(jnp.float32)
    inside = image_pixels(batch.sizes, side, model)
    pixels = inside.astype(jnp.float32)

    encoder_key = jax.random.fold_in(drop_key, numbers[0]) if training else None
    options: dict[str, Any] = {"dtype": dtype, "drop_path": config.drop_path, "remat": remat, "key": encoder_key}
    if batch.maps is not None:
        embeddings = finish_maps(params, batch.maps, model, **options)
    else:
        assert batch.images is not None
        images = normalize_images(batch.images, batch.sizes, model.encoder)
        embeddings = encode_image(params, images, model, **options)

    def decode(
        prompts: Prompts, first: bool, round_key: Key[Array, ""]
    ) -> tuple[dict[str, Float[Array, "B Q"]], Float[Array, "B Q l l"]]:
        single_too = first and config.loss.single_mask_first
        encoded = encode_prompts(params, prompts, model, dtype=dtype)
        prediction = decode_masks(
            params,
            embeddings,
            encoded,
            model,
            multimask_output=None if single_too else first,
            dtype=dtype,
            dropout=config.decoder_dropout,
            key=jax.random.fold_in(round_key, 1 + numbers[0]) if training else None,
        )
        single_loss: Any = 0.0
        if single_too:
            single = jax.tree.map(lambda x: x[:, :, :1], prediction)
            prediction = jax.tree.map(lambda x: x[:, :, 1:], prediction)
            single_logits = resize_logits(single.low_res_logits, side)
            single_loss, _ = segmentation_loss(single_logits, single.iou_predictions, truth, pixels, config.loss)
        trusted = jnp.argmax(prediction.iou_predictions, -1)[..., None, None, None]
        logits = resize_logits(prediction.low_res_logits, side)
        loss, terms = segmentation_loss(logits, prediction.iou_predictions, truth, pixels, config.loss)
        chosen = jnp.take_along_axis(prediction.low_res_logits, trusted, 2)[:, :, 0]
        return terms | {"loss": loss + single_loss}, chosen

    points, labels = draw_per_image(
        lambda key, part: first_prompts(key, part, model, config.prompts), prompt_key, numbers, batch
    )
    text: dict[str, Shaped[Array, "..."]] = {}
    if clip is not None:
        views, patches, has_text = draw_per_image(
            lambda key, part: object_views(key, part, clip, config.text),
            jax.random.fold_in(key, TEXT_DRAWS),
            numbers,
            batch,
        )
        flat = views.reshape(-1, *views.shape[2:]), patches.reshape(-1, *patches.shape[2:])
        objects = embed_images(params[CLIP], flat[0], clip, flat[1], dtype=dtype)
        text = {"text_embeddings": objects.reshape(*has_text.shape, -1), "has_text": has_text}
        labels = jnp.where(has_text[..., None], PAD, labels)
    first_key, later_key = jax.random.split(rounds_key)
    # Without remat what this round needs for its backward pass would wait until all later rounds have had theirs.
    play_first: Callable = functools.partial(decode, first=True)
    play_first = jax.checkpoint(play_first) if remat else play_first
    first_terms, first_logits = play_first(Prompts(points, labels, **text), round_key=first_key)
    adds_point = round_schedule(schedule_key, config.prompts)
    if not len(adds_point):
        return Rounds(jax.tree.map(lambda x: x[None], first_terms), points, labels, first_logits, first_logits)

    def play_round(carry: tuple, inputs: tuple) -> tuple[tuple, dict]:
        points, labels, logits, slot = carry
        round_key, adds = inputs
        predicted = resize_logits(logits, side) > 0
        click, label = draw_per_image(
            lambda key, predicted, truth, inside: next_points(key, predicted, truth, inside, model),
            round_key,
            numbers,
            predicted,
            batch.masks,
            inside,
        )
        points = jax.lax.dynamic_update_index_in_dim(points, click, slot, 2)
        labels = jax.lax.dynamic_update_index_in_dim(labels, jnp.where(adds, label, PAD), slot, 2)
        mask_logits = jnp.asarray(logits).reshape(*labels.shape[:2], low_res, low_res)
        prompts = Prompts(points, labels, mask_logits, **text)
        terms, logits = decode(prompts, False, round_key)
        return (points, labels, logits, slot + adds), terms

    # A scan keeps what its backward pass needs of all rounds at once. Without remat that is the products alone; what
    # lies between them, most of the memory and little of the work, is computed again.
    body = jax.checkpoint(play_round, policy=None if remat else jax.checkpoint_policies.dots_saveable)
    start = (points, labels, first_logits, jnp.int32(2))
    inputs = (jax.random.split(later_key, len(adds_point)), adds_point)
    (points, labels, last_logits, _), later_terms = jax.lax.scan(body, start, inputs)
    terms = jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), first_terms, later_terms)
    return Rounds(terms, points, labels, first_logits, last_logits)


def sums_over_masks(
    terms: dict[str, Float[Array, "R B Q"]], valid: Bool[AnyArray, "B Q"]
) -> dict[str, Float[Array, " R"]]:
    """Returns the sums of each round over the masks that exist."""
    return {name: (values * valid).sum((1, 2)) for name, values in terms.items()}


def cut_batch(batch: Any, parts: int) -> Any:
    """Reshapes arrays (B, ...) to (parts, B / parts, ...). Each device of a mesh keeps the images that it has."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def total_of(tree: Any, axis_name: str | None) -> Any:
    """Sums over the devices of `jax.pmap`; in any other mode a tree is complete as it is."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def image_numbers(batch: Batch, axis_name: str | None) -> Int[Array, " B"]:
    """Returns the numbers of a batch's images in the global batch."""
    B = len(batch.sizes)
    return jnp.arange(B) + (0 if axis_name is None else B * jax.lax.axis_index(axis_name))


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    clip: ClipConfig | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Shaped[Array, "..."]]]:
    """Makes one update (`update_state`) from all rounds on one batch.

    The loss is the sum over rounds of the mean over masks.

    Args:
        key: the run's key; the step's own is folded from it, so that a resumed run draws what it would have drawn.
        axis_name: of `jax.pmap`, if it runs under that.

    Returns:
        the new state, and metrics: arrays per round, `masks`, and those of `update_state`.
    """
    step_key = jax.random.fold_in(key, state.step)
    masks = total_of(batch.valid.sum(), axis_name)

    def loss_fn(
        trained: Params, part: Batch, numbers: Int[Array, " B"]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, " R"]]]:
        params = join_params(trained, state.frozen, config.finetune)
        rounds = run_rounds(params, part, step_key, config, training=True, clip=clip, numbers=numbers)
        sums = sums_over_masks(rounds.terms, part.valid)
        metrics = {name: values / jnp.maximum(masks, 1) for name, values in sums.items()}
        return metrics["loss"].sum(), metrics

    gradient = jax.grad(loss_fn, has_aux=True)
    numbers = image_numbers(batch, axis_name)
    if config.accumulate == 1:
        grads, metrics = gradient(state.params, batch, numbers)
    else:
        parts = cut_batch(batch, config.accumulate), cut_batch(numbers, config.accumulate)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(gradient, state.params, *jax.tree.map(lambda x: x[0], parts)),
        )

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(state.params, *part)), None

        (grads, metrics), _ = jax.lax.scan(add, zeros, parts)
    grads, metrics = total_of((grads, metrics), axis_name)

    state, update = update_state(state, grads, config, optimizer)
    return state, metrics | {"masks": masks} | update


def validation_step(
    state: TrainState,
    batch: Batch,
    key: Key[Array, ""],
    *,
    config: TrainConfig,
    clip: ClipConfig | None = None,
    axis_name: str | None = None,
) -> dict[str, Shaped[Array, "..."]]:
    """Runs the rounds without learning.

    Returns:
        the sums of each round over the global batch's masks, and the number of `masks`.
    """
    numbers = image_numbers(batch, axis_name)
    rounds = run_rounds(run_params(state, config), batch, key, config, training=False, clip=clip, numbers=numbers)
    return total_of(sums_over_masks(rounds.terms, batch.valid) | {"masks": batch.valid.sum()}, axis_name)


def preview_step(
    state: TrainState, batch: Batch, key: Key[Array, ""], *, config: TrainConfig, clip: ClipConfig | None = None
) -> tuple[Float[Array, "B Q N 2"], Int[Array, "B Q N"], Bool[Array, "B Q l l"], Bool[Array, "B Q l l"]]:
    """Returns the clicks of all rounds, their labels, and the masks after the first prompt and after the last round."""
    rounds = run_rounds(run_params(state, config), batch, key, config, training=False, clip=clip)
    return rounds.points, rounds.labels, rounds.first_logits > 0, rounds.last_logits > 0
