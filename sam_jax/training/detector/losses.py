"""The detector's losses: sums over the images of a device, divided by counts over all devices."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.detection.boxes import clip_boxes, decode_boxes, encode_boxes, make_anchors
from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.detector import (
    Proposals,
    extract_features,
    score_anchors,
    score_boxes,
    score_masks,
    select_proposals,
)
from sam_jax.detection.roi_align import crop_masks
from sam_jax.modeling import normalize_images
from sam_jax.training.detector.config import STAGE_IOUS, DetectorTrainConfig, SamplingConfig
from sam_jax.training.detector.targets import match_boxes, sample_boxes, usable
from sam_jax.training.step import draw_per_image, total_of
from sam_jax.types import AnyArray, Batch, Params

Terms = dict[str, Float[Array, ""]]
Maps = tuple[Float[Array, "B _ _ C"], ...]


class Truth(NamedTuple):
    """The objects of a batch. Boxes are edges in pixels of the input frame."""

    boxes: Float[Array, "B Q 4"]
    exists: Bool[Array, "B Q"]
    masks: Bool[Array, "B Q L L"]


def true_objects(batch: Batch) -> Truth:
    """Returns the objects of a batch. Its boxes name the outermost pixels; as edges they are one pixel larger."""
    boxes, valid = usable(batch.boxes + jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.asarray(batch.valid))
    return Truth(boxes, valid, batch.masks)


def detector_losses(
    params: Params,
    batch: Batch,
    key: Key[Array, ""],
    numbers: Int[Array, " B"],
    config: DetectorTrainConfig,
    *,
    training: bool,
    axis_name: str | None,
) -> tuple[Terms, Maps, Proposals]:
    """Returns all losses of a batch, whose sum is minimised.

    They are those of the scores and the boxes of anchors and of each stage's box head, and that of the masks.

    Args:
        numbers: of the images in the global batch, of which `batch` is a device's part.

    Returns:
        the losses; maps and proposals, to find objects with.

    Reference: Ren et al. 2015; He et al. 2017; Cai and Vasconcelos 2018. Weights are 1, as in detectron2.
    """
    model, dtype = config.model, jnp.dtype(config.dtype)
    drop_key, anchor_key, box_key = jax.random.split(key, 3)
    assert batch.images is not None
    maps = extract_features(
        params,
        normalize_images(batch.images, batch.sizes, model.encoder),
        model,
        dtype=dtype,
        drop_path=config.drop_path,
        remat=config.remat and training,
        key=jax.random.fold_in(drop_key, numbers[0]) if training else None,
    )
    truth = true_objects(batch)
    logits, deltas = score_anchors(params, maps, model, dtype=dtype)
    images = total_of(jnp.float32(len(numbers)), axis_name)
    draw = functools.partial(_anchor_losses, config=config)
    sums = draw_per_image(
        draw, anchor_key, numbers, jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1), truth.boxes, truth.exists
    )
    terms = {name: value.sum() / (images * config.sampling.anchors) for name, value in sums.items()}

    fixed_logits, fixed_deltas = jax.lax.stop_gradient((logits, deltas))
    proposals = select_proposals(fixed_logits, fixed_deltas, batch.sizes, model, config.sampling.pre_nms)
    boxes, objects, positive, valid = draw_per_image(
        functools.partial(_sample_proposals, sampling=config.sampling), box_key, numbers, proposals, truth
    )
    terms |= _box_losses(params, maps, batch.sizes, truth, boxes, objects, positive, valid, config, axis_name)
    terms |= _mask_loss(params, maps, truth, boxes, objects, positive, config, axis_name)
    return terms, maps, proposals


def _anchor_losses(
    key: Key[Array, ""],
    logits: Float[Array, "1 N"],
    deltas: Float[Array, "1 N 4"],
    truth: Float[Array, "1 Q 4"],
    exists: Bool[Array, "1 Q"],
    *,
    config: DetectorTrainConfig,
) -> dict[str, Float[Array, "1"]]:
    """Returns the sums of one image over the sampled anchors."""
    sampling, anchors = config.sampling, jnp.concatenate(make_anchors(config.model))
    match = match_boxes(anchors, truth[0], exists[0], *sampling.anchor_ious, best_for_each=True)
    sample = sample_boxes(key, match.positive, match.negative, sampling.anchors, sampling.anchor_positives)
    i = sample.indices
    score = optax.sigmoid_binary_cross_entropy(logits[0, i], sample.positive.astype(jnp.float32))
    target = encode_boxes(truth[0][match.objects[i]], anchors[i], (1.0, 1.0))
    distance = jnp.abs(deltas[0, i] - target).sum(-1)
    return {
        "anchor_scores": (score * sample.valid).sum()[None],
        "anchor_boxes": (distance * sample.positive).sum()[None],
    }


def _sample_proposals(
    key: Key[Array, ""], proposals: Proposals, truth: Truth, *, sampling: SamplingConfig
) -> tuple[Float[Array, "1 N 4"], Int[Array, "1 N"], Bool[Array, "1 N"], Bool[Array, "1 N"]]:
    """Draws the boxes of one image to learn from: boxes, their objects, which are positive and which valid.

    True boxes are among the candidates.
    """
    boxes = jnp.concatenate([proposals.boxes[0], truth.boxes[0]])
    valid = jnp.concatenate([proposals.valid[0], truth.exists[0]])
    match = match_boxes(boxes, truth.boxes[0], truth.exists[0], STAGE_IOUS[0], STAGE_IOUS[0])
    sample = sample_boxes(key, match.positive & valid, match.negative & valid, sampling.boxes, sampling.box_positives)
    chosen, _ = usable(boxes[sample.indices], sample.valid)
    return chosen[None], match.objects[sample.indices][None], sample.positive[None], sample.valid[None]


def _box_losses(
    params: Params,
    maps: Maps,
    sizes: Int[AnyArray, "B 2"],
    truth: Truth,
    boxes: Float[Array, "B N 4"],
    objects: Int[Array, "B N"],
    positive: Bool[Array, "B N"],
    valid: Bool[Array, "B N"],
    config: DetectorTrainConfig,
    axis_name: str | None,
) -> Terms:
    """Returns the losses of each stage's box head."""
    model, stages = config.model, len(config.model.box_weights)
    terms = {}
    for stage, weights in enumerate(model.box_weights):
        if stage:  # matched anew, and more strictly
            iou = STAGE_IOUS[stage]
            match = jax.vmap(functools.partial(match_boxes, low=iou, high=iou))(boxes, truth.boxes, truth.exists)
            objects, positive = match.objects, match.positive & valid
        logits, deltas = score_boxes(
            params, maps, boxes, stage, model, dtype=jnp.dtype(config.dtype), gradient_scale=1 / stages
        )
        count = jnp.maximum(total_of(valid.sum(), axis_name), 1)
        score = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(positive, 0, 1))
        target = encode_boxes(jnp.take_along_axis(truth.boxes, objects[..., None], 1), boxes, weights)
        distance = jnp.abs(deltas[:, :, 0] - target).sum(-1)
        terms[f"box_scores_{stage}"] = (score * valid).sum() / count
        terms[f"boxes_{stage}"] = (distance * positive).sum() / count
        moved = decode_boxes(jax.lax.stop_gradient(deltas[:, :, 0]), boxes, weights)
        boxes, valid = usable(clip_boxes(moved, sizes), valid)
    return terms


def _mask_loss(
    params: Params,
    maps: Maps,
    truth: Truth,
    boxes: Float[Array, "B N 4"],
    objects: Int[Array, "B N"],
    positive: Bool[Array, "B N"],
    config: DetectorTrainConfig,
    axis_name: str | None,
) -> Terms:
    """Returns the loss of the masks over the sampled positives, which come first."""
    model: DetectorConfig = config.model
    most = min(boxes.shape[1], int(config.sampling.boxes * config.sampling.box_positives))
    boxes, objects, positive = boxes[:, :most], objects[:, :most], positive[:, :most]
    logits = score_masks(params, maps, boxes, jnp.zeros_like(objects), model, dtype=jnp.dtype(config.dtype))
    scale = truth.masks.shape[-1] / model.encoder.image_size
    masks = jax.vmap(lambda masks, i: masks[i])(truth.masks, objects).astype(jnp.float32)
    target = crop_masks(masks, boxes * scale, logits.shape[-1]) >= 0.5
    loss = optax.sigmoid_binary_cross_entropy(logits, target.astype(jnp.float32)).mean((-2, -1))
    return {"masks": (loss * positive).sum() / jnp.maximum(total_of(positive.sum(), axis_name), 1)}
