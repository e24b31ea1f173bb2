"""Defines the family of detectors: those that detectron2 publishes.

Our names are detectron2's with `/` for `.` and digits joined by `_`, but for the parts of the model, which are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam_jax.checkpoints.family import ENCODER, PYTORCH_RULES, Family, Naming, Rules, Shape, rename
from sam_jax.checkpoints.published import State
from sam_jax.detection.config import DETECTORS, DetectorConfig
from sam_jax.detection.detector import init_detector
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of
from sam_jax.modeling.encoders.base import Pretraining

ENCODER_PREFIX = "backbone.net."  # the encoder has the names of its pre-training there
POSITIONS = f"{ENCODER_PREFIX}pos_embed"
PRETRAINING_GRID = 14  # of masked autoencoders on images of 224 pixels
RULES: Rules = (
    (r"^pyramid/", "backbone/"),
    (r"^rpn_head/conv_", "proposal_generator/rpn_head/conv/"),
    (r"^rpn_head/", "proposal_generator/rpn_head/"),
    (r"^box_heads(_\d+)/(cls_score|bbox_pred)", r"roi_heads/box_predictor\1/\2"),
    (r"^box_heads", "roi_heads/box_head"),
    (r"^mask_head/", "roi_heads/mask_head/"),
    (r"_norm/", "/norm/"),
    (r"simfp_(\d)_(\d)", r"simfp_\1/\2"),
    (r"(box_head|box_predictor)_(\d+)", r"\1/\2"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)
ONE_BOX_HEAD: Rules = ((r"(box_head|box_predictor)\.0\.", r"\1."),)  # it is not numbered


def detectron2_name(ours: str, config: DetectorConfig) -> str:
    """Returns detectron2's name of a tensor `path/to/param` of ours."""
    if ours.startswith(ENCODER):
        rules = (*_pretraining(config).rules, *PYTORCH_RULES)
        return ENCODER_PREFIX + rename(ours.removeprefix(ENCODER), rules)
    return rename(ours, RULES if config.cascade else RULES + ONE_BOX_HEAD)


def detectron2_shapes(config: DetectorConfig) -> dict[str, Shape]:
    """Returns name -> shape of detectron2's tensors, with the position embeddings of the usual pre-training."""
    shapes = DETECTOR.foreign_shapes(config, DETECTRON2)
    return shapes | {POSITIONS: (1, PRETRAINING_GRID**2 + 1, shapes[POSITIONS][-1])}


def _pretraining(config: DetectorConfig) -> Pretraining[Any]:
    pretraining = encoder_of(config.encoder).pretraining
    if pretraining is None:
        raise UserError(
            f"the {config.encoder.kind} encoder has no detectron2 checkpoint format; give a detector in *.safetensors"
        )
    return pretraining


def _fit_positions(state: State, config: DetectorConfig) -> State:
    """Resizes position embeddings, once; detectron2 keeps them as pre-trained and resizes them with each image."""
    if POSITIONS not in state or not _grid_side(state[POSITIONS].shape):
        return state
    name = POSITIONS.removeprefix(ENCODER_PREFIX)
    return {**state, POSITIONS: _pretraining(config).convert(name, state[POSITIONS], config.encoder)}


def _grid_side(shape: Shape) -> int:
    """Returns the side of the square grid that position embeddings beside a class token are for; 0: for none."""
    side = round(max(shape[1] - 1, 0) ** 0.5) if len(shape) == 3 else 0
    return side if side and side**2 + 1 == shape[1] else 0


def guess_config(shapes: Mapping[str, Shape], source: str) -> DetectorConfig:
    """Returns the published detector with the same width, heads and classes.

    Raises:
        UserError: there is none.
    """
    if POSITIONS not in shapes:
        raise UserError(
            f"expected detectron2's ViTDet with a tensor {POSITIONS} in {source}, it has {len(shapes)} others: "
            f"{sorted(shapes)[:8]}"
        )
    cascade = any(name.startswith("roi_heads.box_head.0.") for name in shapes)
    scores = shapes.get(f"roi_heads.box_predictor.{'0.' if cascade else ''}cls_score.bias")
    width, classes = shapes[POSITIONS][-1], None if scores is None else scores[0] - 1
    alike = [c for c in DETECTORS.values() if (c.encoder.features, c.cascade) == (width, cascade)]
    same = [c for c in alike if c.num_classes == classes]
    if not alike or (classes is not None and not same):
        known = ", ".join(sorted({f"{c.encoder.features} with {c.num_classes}" for c in DETECTORS.values()}))
        raise UserError(
            f"{source} has embeddings {width} wide and {classes} classes; published detectors have {known}: "
            "give the config"
        )
    return (same or alike)[0]


DETECTRON2 = Naming(
    name="detectron2",
    landmarks=(POSITIONS,),
    rename=detectron2_name,
    guess=guess_config,
    # Constants beside the weights, which the config has too.
    unused=r"^pixel_(mean|std)$|\.cell_anchors\.\d+$|\.fed_loss_cls_weights$",
    fit=_fit_positions,
    transposed=r"simfp_2_[03]/|simfp_3_0/|deconv/",
    flattened=r"/fc1/kernel$",  # the first full layer takes a map
)
DETECTOR = Family(
    label="a detector",
    key="sam_jax_detector_config",
    config=DetectorConfig,
    init=init_detector,
    sizes=DETECTORS,
    namings=(DETECTRON2,),
)
