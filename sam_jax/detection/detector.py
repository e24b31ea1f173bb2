"""The whole detector as pure functions: params and arrays in, arrays out.

Shapes are static; boxes that do not exist are marked as such.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from sam_jax.detection.boxes import clip_boxes, decode_boxes, make_anchors, not_empty
from sam_jax.detection.config import BOX_BINS, MASK_BINS, DetectorConfig
from sam_jax.detection.heads import BoxHead, FeaturePyramid, MaskHead, ProposalHead
from sam_jax.detection.nms import boxes_that_stay, pick_best
from sam_jax.detection.roi_align import pool_boxes
from sam_jax.modeling.common import apply
from sam_jax.modeling.encoders import encoder_of
from sam_jax.types import AnyArray, Params


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first."""

    boxes: Float[Array, "B R 4"]  # input frame
    logits: Float[Array, "B R"]  # objectness; -inf where there is no box
    valid: Bool[Array, "B R"]


class Detections(NamedTuple):
    """Objects, best first."""

    boxes: Float[Array, "B N 4"]  # input frame, within the image
    scores: Float[Array, "B N"]  # 0 where there is nothing
    classes: Int[Array, "B N"]  # place in the config's category_ids
    valid: Bool[Array, "B N"]
    masks: Float[Array, "B N 28 28"]  # probabilities; the mask fills its box


@functools.partial(jax.jit, static_argnums=0)
def init_detector(config: DetectorConfig, key: Key[Array, ""]) -> Params:
    """Returns random float32 params. `jax.eval_shape` of this function gives their shapes."""
    c, keys = config, jax.random.split(key, 4 + len(config.box_weights))
    encoder = c.encoder
    grid = jnp.zeros((1, encoder.grid_size, encoder.grid_size, encoder.features))
    pooled = jnp.zeros((1, 1, BOX_BINS, BOX_BINS, c.channels))
    to_mask = jnp.zeros((1, 1, MASK_BINS, MASK_BINS, c.channels))
    modules: dict[str, tuple] = {
        "pyramid": (FeaturePyramid(c), grid),
        "rpn_head": (ProposalHead(c), grid[..., :1].repeat(c.channels, -1)),
        "mask_head": (MaskHead(c), to_mask, jnp.zeros((1, 1), int)),
        **{f"box_heads_{i}": (BoxHead(c), pooled) for i in range(len(c.box_weights))},
    }
    params = {"image_encoder": encoder_of(encoder).init(encoder, keys[0])}
    for key, (name, (module, *arguments)) in zip(keys[1:], modules.items(), strict=True):
        params[name] = module.init(key, *arguments)["params"]
    return params


def extract_features(
    params: Params,
    images: Float[Array, "B S S 3"],
    config: DetectorConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    drop_path: float = 0.0,
    remat: bool = False,
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B _ _ C"], ...]:
    """Encodes normalised images as maps p2 to p6.

    Args:
        images: from `sam_jax.modeling.normalize_images` with `config.encoder`.
        drop_path: rate of the last block; takes effect only with a `key`, that is in training.
        remat: recompute blocks in the backward pass.

    Raises:
        ValueError: images of another size.
    """
    encoder, own = encoder_of(config.encoder), params["image_encoder"]
    maps = encoder.apply(own, images, config.encoder, dtype=dtype, drop_path=drop_path, remat=remat, key=key)
    return apply(FeaturePyramid(config, dtype), params["pyramid"], maps["last"])


def score_anchors(
    params: Params, features: Sequence[Float[Array, "B _ _ C"]], config: DetectorConfig, *, dtype: DTypeLike
) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]]]:
    """Returns objectness logits and deltas of the anchors of each map."""
    pairs = [apply(ProposalHead(config, dtype), params["rpn_head"], x) for x in features]
    return [logits for logits, _ in pairs], [deltas for _, deltas in pairs]


def select_proposals(
    logits: Sequence[Float[Array, "B _"]],
    deltas: Sequence[Float[Array, "B _ 4"]],
    sizes: Int[AnyArray, "B 2"],
    config: DetectorConfig,
    pre_nms: int,
) -> Proposals:
    """Selects the best boxes: the best `pre_nms` anchors of each map, suppressed within it; then the best of all maps.

    Args:
        sizes: (h, w) of the part of the input frame that is image.
    """
    rows = []
    for anchors, logit, delta in zip(make_anchors(config), logits, deltas, strict=True):
        few = min(pre_nms, logit.shape[1])
        scores, best = jax.lax.top_k(logit, few)
        boxes = decode_boxes(jnp.take_along_axis(delta, best[..., None], 1), anchors[best], (1.0, 1.0))
        lacking = pre_nms - few
        rows.append(
            (
                jnp.pad(clip_boxes(boxes, sizes), ((0, 0), (0, lacking), (0, 0))),
                jnp.pad(scores, ((0, 0), (0, lacking)), constant_values=-jnp.inf),
            )
        )
    boxes, scores = (jnp.stack(parts, 1) for parts in zip(*rows, strict=True))  # (B, maps, pre_nms, ...)
    valid = not_empty(boxes) & jnp.isfinite(scores)
    suppress = functools.partial(boxes_that_stay, threshold=config.proposal_nms)
    scores = jnp.where(jax.vmap(jax.vmap(suppress))(boxes, valid), scores, -jnp.inf)
    B = boxes.shape[0]
    top, best = jax.lax.top_k(scores.reshape(B, -1), min(config.proposals, scores[0].size))
    stays = jnp.isfinite(top)
    boxes = jnp.take_along_axis(boxes.reshape(B, -1, 4), best[..., None], 1)
    return Proposals(jnp.where(stays[..., None], boxes, 0), top, stays)


def score_boxes(
    params: Params,
    features: Sequence[Float[Array, "B _ _ C"]],
    boxes: Float[Array, "B R 4"],
    stage: int,
    config: DetectorConfig,
    *,
    dtype: DTypeLike,
    gradient_scale: float = 1.0,
) -> tuple[Float[Array, "B R {config.num_classes}+1"], Float[Array, "B R G 4"]]:
    """Returns class logits, the background last, and deltas of boxes, from the head of one stage.

    Args:
        features: maps p2 to p6, of which the last is not used.
        gradient_scale: on what flows back into the maps.
    """
    pooled = pool_boxes(features[:4], boxes, config, BOX_BINS)
    if gradient_scale != 1.0:
        pooled = gradient_scale * pooled + (1 - gradient_scale) * jax.lax.stop_gradient(pooled)
    return apply(BoxHead(config, dtype), params[f"box_heads_{stage}"], pooled)


def score_masks(
    params: Params,
    features: Sequence[Float[Array, "B _ _ C"]],
    boxes: Float[Array, "B N 4"],
    classes: Int[Array, "B N"],
    config: DetectorConfig,
    *,
    dtype: DTypeLike,
) -> Float[Array, "B N 28 28"]:
    """Returns the logits of the mask of each box's class."""
    pooled = pool_boxes(features[:4], boxes, config, MASK_BINS)
    return apply(MaskHead(config, dtype), params["mask_head"], pooled, classes)


def refine_proposals(
    params: Params,
    features: Sequence[Float[Array, "B _ _ C"]],
    proposals: Proposals,
    sizes: Int[AnyArray, "B 2"],
    config: DetectorConfig,
    *,
    dtype: DTypeLike,
) -> tuple[Float[Array, "B R G 4"], Float[Array, "B R K"]]:
    """Runs all stages of box heads: boxes for each class (or one for all), and scores, the mean over the stages.

    A stage starts from the boxes of the stage before, cut to the image.
    """
    boxes, scores = proposals.boxes, jnp.zeros(())
    refined = boxes[:, :, None]
    for stage, weights in enumerate(config.box_weights):
        logits, deltas = score_boxes(params, features, boxes, stage, config, dtype=dtype)
        probabilities = jax.nn.sigmoid(logits) if config.sigmoid_scores else jax.nn.softmax(logits)
        scores += probabilities[..., :-1] / len(config.box_weights)
        refined = clip_boxes(decode_boxes(deltas, boxes[:, :, None], weights), sizes)
        boxes = refined[:, :, 0]
    valid = proposals.valid & jnp.isfinite(refined).all((-1, -2)) & jnp.isfinite(scores).all(-1)
    return refined, jnp.where(valid[..., None], scores, -jnp.inf)


def find_objects(
    params: Params,
    features: Sequence[Float[Array, "B _ _ C"]],
    proposals: Proposals,
    sizes: Int[AnyArray, "B 2"],
    config: DetectorConfig,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Detections:
    """Turns proposals into objects with classes, boxes and masks: the second half of `detect_objects`."""
    boxes, scores = refine_proposals(params, features, proposals, sizes, config, dtype=dtype)
    scores = jnp.where(scores > config.score_threshold, scores, -jnp.inf)
    pick = functools.partial(pick_best, threshold=config.box_nms, count=config.detections)
    which, classes, scores = jax.vmap(pick)(boxes, scores)
    valid = jnp.isfinite(scores)
    of_class = jnp.zeros_like(classes) if config.box_classes == 1 else classes
    boxes = jax.vmap(lambda boxes, r, k: boxes[r, k])(boxes, which, of_class)
    boxes = jnp.where(valid[..., None], boxes, 0)
    masks = jax.nn.sigmoid(score_masks(params, features, boxes, classes, config, dtype=dtype))
    return Detections(boxes, jnp.where(valid, scores, 0), classes, valid, masks)


def detect_objects(
    params: Params,
    images: Float[Array, "B S S 3"],
    sizes: Int[AnyArray, "B 2"],
    config: DetectorConfig,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Detections:
    """Finds at most `config.detections` objects on each of the normalised images.

    Args:
        images: from `sam_jax.modeling.normalize_images` with `config.encoder`.
        sizes: (h, w) of the part that is image, pixels of the input frame.
        dtype: of the arithmetic; boxes and scores are float32.
    """
    features = extract_features(params, images, config, dtype=dtype)
    logits, deltas = score_anchors(params, features, config, dtype=dtype)
    proposals = select_proposals(logits, deltas, sizes, config, config.pre_nms)
    return find_objects(params, features, proposals, sizes, config, dtype=dtype)
