"""ViTDet against detectron2, part by part and end to end, from the same random weights.

    python benchmarks/vitdet_parity.py --detectron2 FOLDER [--record tests/data/vitdet_detectron2.json]

FOLDER is a checkout of github.com/facebookresearch/detectron2; its Python code runs as it is and needs fvcore, iopath
and omegaconf (pip). For the compiled operators of torchvision and for timm plain PyTorch stands in. Exits with an error
when boxes are more than 1e-3 pixels, scores more than 1e-5 or losses more than 1e-4 apart. With --record, detectron2's
results are written for the tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # for cases

from cases.vitdet import CASES, SIZES, SMALL, make_images, random_state, summary
from sam_jax.checkpoints import params_from_state
from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.detector import (
    detect_objects,
    extract_features,
    score_anchors,
    score_boxes,
    select_proposals,
)
from sam_jax.detection.roi_align import pool_boxes
from sam_jax.modeling import normalize_images
from sam_jax.training.detector.config import DetectorTrainConfig, SamplingConfig
from sam_jax.training.detector.losses import detector_losses
from sam_jax.types import Batch


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Box by box, as the kernel of torchvision."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept, fallen = [], torch.zeros(len(boxes), dtype=torch.bool)
    for i in torch.sort(scores, descending=True, stable=True)[1].tolist():
        if fallen[i]:
            continue
        kept.append(i)
        corner = torch.minimum(boxes[i, 2:], boxes[:, 2:]) - torch.maximum(boxes[i, :2], boxes[:, :2])
        inner = corner.clamp(min=0).prod(1)
        fallen |= inner / (areas[i] + areas - inner) > threshold
    return torch.tensor(kept, dtype=torch.long)


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float) -> torch.Tensor:
    members = [torch.where(groups == group)[0] for group in torch.unique(groups)]
    kept = [where[nms(boxes[where], scores[where], threshold)] for where in members]
    kept = torch.cat(kept).sort()[0] if kept else torch.zeros(0, dtype=torch.long)
    return kept[scores[kept].sort(descending=True, stable=True)[1]]


def roi_align(
    maps: torch.Tensor, rois: torch.Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    """Sample by sample, as the kernel of torchvision."""
    assert sampling_ratio == 0
    assert aligned
    pooled = torch.zeros(len(rois), maps.shape[1], *size)
    for i, (number, *corners) in enumerate(rois):
        x0, y0, x1, y1 = (corner * scale - 0.5 for corner in corners)
        columns, rows = (math.ceil(length / bins) for length, bins in ((x1 - x0, size[1]), (y1 - y0, size[0])))
        if not columns or not rows:
            continue
        values = maps[int(number)]
        for axis, low, high, bins, count in ((1, y0, y1, size[0], rows), (2, x0, x1, size[1], columns)):
            step, side = (high - low) / bins, values.shape[axis]
            at = low + torch.arange(bins)[:, None] * step + (torch.arange(count) + 0.5) * step / count
            outside = (at < -1) | (at > side)
            at = at.clamp(0, side - 1).reshape(-1)
            below = at.long().clamp(max=side - 1)
            shape = [-1 if a == axis else 1 for a in range(3)]
            part = (at - below).reshape(shape)
            above = (below + 1).clamp(max=side - 1)
            values = (1 - part) * values.index_select(axis, below) + part * values.index_select(axis, above)
            values = torch.where(outside.reshape(shape), 0.0, values)
        pooled[i] = values.reshape(-1, size[0], rows, size[1], columns).mean((2, 4))
    return pooled


class Mlp(torch.nn.Module):
    """timm's, as far as it is used."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Any) -> None:
        super().__init__()
        self.fc1, self.act = torch.nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = torch.nn.Linear(hidden_features, in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Empty(types.ModuleType):
    """A module in which every name is an empty class: for compiled operators that nothing here calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def use_detectron2(folder: Path) -> None:
    """`import detectron2` works after this."""
    sys.path.insert(0, str(folder))
    ops = {"nms": nms, "batched_nms": batched_nms}
    for name, contents in {
        "torchvision": {"__version__": "0.20.0"},
        "torchvision.ops": {"roi_align": roi_align, "RoIPool": object, "deform_conv2d": None, **ops},
        "torchvision.ops.boxes": {"box_area": None, **ops},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {"DropPath": torch.nn.Identity, "Mlp": Mlp},
        "detectron2._C": {},
    }.items():
        module = Empty(name) if name == "detectron2._C" else types.ModuleType(name)
        module.__dict__.update(contents, __spec__=ModuleSpec(name, None), __path__=[])
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], own, module)


def detectron2_model(config: DetectorConfig, drawn: int = 512) -> Any:
    """The model that detectron2's published configs describe, with our numbers; call `use_detectron2` first.

    Args:
        drawn: anchors, and boxes, that a training step learns from.
    """
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.meta_arch import GeneralizedRCNN
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
    from detectron2.modeling.roi_heads import (
        CascadeROIHeads,
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
        StandardROIHeads,
    )

    c, e = config, config.encoder
    vit = ViT(
        img_size=e.image_size,
        patch_size=e.patch_size,
        embed_dim=e.dim,
        depth=e.depth,
        num_heads=e.heads,
        window_size=e.window_size,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        window_block_indexes=[i for i in range(e.depth) if i not in e.global_attention_blocks],
        use_rel_pos=True,
        pretrain_img_size=6 * e.patch_size,
    )
    backbone = SimpleFeaturePyramid(
        net=vit,
        in_feature="last_feat",
        out_channels=c.channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=e.image_size,
    )
    names = ["p2", "p3", "p4", "p5", "p6"]
    rpn = RPN(
        in_features=names,
        head=StandardRPNHead(in_channels=c.channels, num_anchors=3, conv_dims=[-1, -1]),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[c.anchor_cells * stride] for stride in c.strides],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=list(c.strides),
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=drawn,
        positive_fraction=0.5,
        pre_nms_topk=(c.pre_nms, c.pre_nms),
        post_nms_topk=(c.proposals, c.proposals),
        nms_thresh=c.proposal_nms,
    )

    def pooler(size: int) -> Any:
        scales = tuple(1 / stride for stride in c.strides[:4])
        return ROIPooler(size, scales, 0, "ROIAlignV2", canonical_box_size=int(c.box_size))

    def box_head() -> Any:
        shape = ShapeSpec(channels=c.channels, height=7, width=7)
        return FastRCNNConvFCHead(shape, conv_dims=[c.channels] * 4, fc_dims=[c.fc_dim], conv_norm="LN")

    def predictor(weights: tuple[float, float]) -> Any:
        (a, b), shape = weights, ShapeSpec(channels=c.fc_dim)
        return FastRCNNOutputLayers(
            shape,
            box2box_transform=Box2BoxTransform((a, a, b, b)),
            num_classes=c.num_classes,
            test_score_thresh=c.score_threshold,
            test_nms_thresh=c.box_nms,
            test_topk_per_image=c.detections,
            cls_agnostic_bbox_reg=c.cascade,
            use_sigmoid_ce=c.sigmoid_scores,
        )

    mask_shape = ShapeSpec(channels=c.channels, height=14, width=14)
    shared = {
        "num_classes": c.num_classes,
        "batch_size_per_image": drawn,
        "positive_fraction": 0.5,
        "box_in_features": names[:4],
        "box_pooler": pooler(7),
        "mask_in_features": names[:4],
        "mask_pooler": pooler(14),
        "mask_head": MaskRCNNConvUpsampleHead(
            mask_shape, num_classes=c.num_classes, conv_dims=[c.channels] * 5, conv_norm="LN"
        ),
    }
    heads, predictors = [box_head() for _ in c.box_weights], [predictor(weights) for weights in c.box_weights]
    matchers = [Matcher([iou], [0, 1]) for iou in (0.5, 0.6, 0.7)[: len(heads)]]
    if c.cascade:
        roi = CascadeROIHeads(box_heads=heads, box_predictors=predictors, proposal_matchers=matchers, **shared)
    else:
        roi = StandardROIHeads(box_head=heads[0], box_predictor=predictors[0], proposal_matcher=matchers[0], **shared)
    model = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=rpn,
        roi_heads=roi,
        pixel_mean=e.pixel_mean,
        pixel_std=e.pixel_std,
        input_format="RGB",
    )
    state = {name: torch.from_numpy(value) for name, value in random_state(c).items()}
    missing, extra = model.load_state_dict(state, strict=False)
    assert not missing, missing
    assert not extra, extra
    return model.eval()


def compare_losses(cascade: bool) -> dict[str, tuple[float, float]]:
    """Ours and detectron2's losses of a class-agnostic detector, where so many are drawn that all are."""
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    drawn, side = 100_000, SMALL.encoder.image_size
    config = dataclasses.replace(SMALL, cascade=cascade, category_ids=(1,))
    model = detectron2_model(config, drawn).train()
    rng = np.random.default_rng(5)
    images = np.stack([np.asarray(Image.fromarray(x).resize((side, side))) for x in make_images()])
    masks, valid = np.zeros((2, 5, side, side), bool), np.array([[True] * 5, [True] * 3 + [False] * 2])
    boxes = np.zeros((2, 5, 4), np.float32)
    for b, q in np.argwhere(valid):
        (w, h), (x, y) = rng.integers(12, 90, 2), rng.integers(0, 70, 2)
        w, h = min(w, side - x), min(h, side - y)
        ys, xs = np.mgrid[:h, :w]
        masks[b, q, y : y + h, x : x + w] = ((ys + 0.5) / h - 0.5) ** 2 + ((xs + 0.5) / w - 0.5) ** 2 < 0.25
        boxes[b, q] = x, y, x + w - 1, y + h - 1
    inputs = []
    for b in range(2):
        truth = Instances((side, side))
        truth.gt_boxes = Boxes(torch.from_numpy(boxes[b, valid[b]] + np.float32([0, 0, 1, 1])))
        truth.gt_classes = torch.zeros(int(valid[b].sum()), dtype=torch.long)
        truth.gt_masks = BitMasks(torch.from_numpy(masks[b, valid[b]]))
        inputs.append({"image": torch.from_numpy(images[b].transpose(2, 0, 1).copy()).float(), "instances": truth})
    with EventStorage():
        theirs = {name: float(value.detach()) for name, value in model(inputs).items()}

    sampling = SamplingConfig(drawn, 0.5, boxes=drawn, box_positives=0.5, pre_nms=config.pre_nms)
    training = DetectorTrainConfig(Path(), config, sampling=sampling, drop_path=0.0)
    batch = Batch(images, np.full((2, 2), side), masks, boxes, valid)
    params = params_from_state(random_state(config), config, "detectron2")
    losses = functools.partial(detector_losses, config=training, training=True, axis_name=None)
    run = jax.jit(lambda *arguments: losses(*arguments)[0])
    ours = {name: float(value) for name, value in run(params, batch, jax.random.key(0), jnp.arange(2)).items()}
    names = {"anchor_scores": "loss_rpn_cls", "anchor_boxes": "loss_rpn_loc", "masks": "loss_mask"}
    for stage in range(len(config.box_weights)):
        ending = f"_stage{stage}" if cascade else ""
        names |= {f"box_scores_{stage}": f"loss_cls{ending}", f"boxes_{stage}": f"loss_box_reg{ending}"}
    assert set(names) == set(ours)
    assert set(names.values()) == set(theirs)
    return {name: (ours[name], theirs[their_name]) for name, their_name in names.items()}


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectron2", type=Path, required=True, help="folder that contains detectron2")
    parser.add_argument("--record", type=Path, help="JSON to write detectron2's results to")
    arguments = parser.parse_args()
    use_detectron2(arguments.detectron2)
    recorded = {}
    print("| case | part | max abs error | largest value |\n|---|---|---|---|")
    lost = False
    for name, config in CASES.items():
        with torch.inference_mode():
            recorded[name], errors = compare(config)
        for part, (error, largest) in errors.items():
            print(f"| {name} | {part} | {error:.1e} | {largest:.3g} |", flush=True)
            limit = 1e-3 if "boxes" in part else 1e-5 if "scores" in part else 1e-4
            lost |= not error < limit
    for cascade in (False, True):
        for part, (ours, theirs) in compare_losses(cascade).items():
            name = "cascade" if cascade else "mask_rcnn"
            print(f"| {name} | loss: {part} | {abs(ours - theirs):.1e} | {theirs:.3g} |", flush=True)
            lost |= not abs(ours - theirs) < 1e-4
    if arguments.record:
        temporary = arguments.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(recorded) + "\n")
        temporary.replace(arguments.record)
    if lost:
        sys.exit("parity is lost")


def compare(config: DetectorConfig) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """detectron2's results, and how far ours are from them: each part on what detectron2 gives it."""
    model, params = detectron2_model(config), params_from_state(random_state(config), config, "detectron2")
    errors: dict[str, tuple[float, float]] = {}

    def note(part: str, ours: Any, theirs: Any) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        error = np.abs(ours - theirs).max() if ours.shape == theirs.shape else math.inf
        before = errors.get(part, (0.0, 0.0))
        errors[part] = max(before[0], float(error)), max(before[1], float(np.abs(theirs).max()))

    inputs = [{"image": torch.from_numpy(x.transpose(2, 0, 1).astype(np.float32))} for x in make_images()]
    images = model.preprocess_image(inputs)
    side, sizes = config.encoder.image_size, np.array(SIZES)
    frames = np.stack([np.pad(x, ((0, side - x.shape[0]), (0, side - x.shape[1]), (0, 0))) for x in make_images()])
    pixels = normalize_images(frames, sizes, config.encoder)
    note("normalised images", pixels, nhwc(images.tensor))
    features = model.backbone(images.tensor)
    names = model.proposal_generator.in_features
    maps = [nhwc(features[name]) for name in names]
    options = {"config": config, "dtype": jnp.float32}
    for name, ours, theirs in zip(
        names, jax.jit(functools.partial(extract_features, **options))(params, pixels), maps, strict=True
    ):
        note(f"backbone and pyramid, {name}", ours, theirs)

    logits, deltas = model.proposal_generator.rpn_head([features[name] for name in names])
    logits = [nhwc(x).reshape(2, -1) for x in logits]
    deltas = [nhwc(x).reshape(2, -1, 4) for x in deltas]
    our_logits, our_deltas = jax.jit(functools.partial(score_anchors, **options))(params, maps)
    for i in range(5):
        note("objectness", our_logits[i], logits[i])
        note("anchor deltas", our_deltas[i], deltas[i])
    proposals, _ = model.proposal_generator(images, features)
    theirs = [p.proposal_boxes.tensor.numpy() for p in proposals]
    select = jax.jit(functools.partial(select_proposals, config=config, pre_nms=config.pre_nms))
    ours = select([jnp.asarray(x) for x in logits], [jnp.asarray(x) for x in deltas], sizes)
    for i, boxes in enumerate(theirs):
        note("proposals, boxes", np.sort(ours.boxes[i][ours.valid[i]], 0), np.sort(boxes, 0))

    padded = np.zeros((2, config.proposals, 4), np.float32)
    for i, boxes in enumerate(theirs):
        padded[i, : len(boxes)] = boxes
    roi, boxes_of = model.roi_heads, [p.proposal_boxes for p in proposals]
    pyramid, counts = [features[name] for name in names[:4]], [len(boxes) for boxes in theirs]
    for bins, pooler in ((7, roi.box_pooler), (14, roi.mask_pooler)):
        ours = jax.jit(functools.partial(pool_boxes, config=config, bins=bins))(maps[:4], padded)
        ours = np.concatenate([x[:n] for x, n in zip(ours, counts, strict=True)])
        note(f"ROIAlign, {bins} bins", ours, nhwc(pooler(pyramid, boxes_of)))
    heads = roi.box_head if config.cascade else [roi.box_head]
    predictors = roi.box_predictor if config.cascade else [roi.box_predictor]
    for stage, (head, predictor) in enumerate(zip(heads, predictors, strict=True)):
        run = jax.jit(functools.partial(score_boxes, stage=stage, **options))
        parts = zip(run(params, maps, padded), predictor(head(roi.box_pooler(pyramid, boxes_of))), strict=True)
        for what, (ours, result) in zip(("logits", "deltas"), parts, strict=True):
            ours = np.concatenate([x[:n] for x, n in zip(ours, counts, strict=True)])
            note(f"box head {stage}, {what}", ours.reshape(result.shape), result)

    found = [
        {
            "boxes": x.pred_boxes.tensor.numpy(),
            "scores": x.scores.numpy(),
            "classes": x.pred_classes.numpy(),
            "masks": x.pred_masks[:, 0].numpy(),
        }
        for x in model.inference(inputs, do_postprocess=False)
    ]
    result = jax.jit(functools.partial(detect_objects, config=config))(params, pixels, sizes)
    for i, expected in enumerate(found):
        stays = np.asarray(result.valid[i])
        for field, value in expected.items():
            note(f"detections, {field}", getattr(result, field)[i][stays], value)
    return summary(maps, theirs, found), errors


if __name__ == "__main__":
    main()
