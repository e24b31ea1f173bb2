"""One training run of a detector."""

from __future__ import annotations

import dataclasses

from sam_jax.bounds import Boxes, CheckedFields, Fraction, Period, Rate, Side
from sam_jax.config import DataConfig, OptimizerConfig, RunConfig, check_order
from sam_jax.detection.config import DetectorConfig
from sam_jax.errors import UserError

ANY_OBJECT = DetectorConfig(name="any_object_vitdet_b", category_ids=(1,))
PUBLISHED_DATA = DataConfig(batch_size=64, scale_range=(0.1, 2.0), flip_probability=0.5)
PUBLISHED_OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, warmup_steps=250, decay_steps=(163_889, 177_546), layer_decay=0.7
)
STAGE_IOUS = (0.5, 0.6, 0.7)  # of each box head: from which IoU on a box is its object's


@dataclasses.dataclass(frozen=True)
class SamplingConfig(CheckedFields):
    """How many anchors and boxes of each image a step learns from; they are drawn anew each time."""

    anchors: Boxes = 256  # anchors drawn from an image
    anchor_positives: Fraction = 0.5  # largest fraction of them that are an object's
    anchor_ious: tuple[Fraction, Fraction] = (
        0.3,
        0.7,
    )  # IoU below which an anchor is background; from which an object
    boxes: Boxes = 512  # boxes drawn from an image
    box_positives: Fraction = 0.25  # largest fraction of them that are an object's
    pre_nms: Boxes = 2000  # best anchors of each map that enter non-maximum suppression

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order("anchor_ious", self.anchor_ious)


@dataclasses.dataclass(frozen=True)
class DetectorTrainConfig(RunConfig):
    """One training run of a detector of anything: every mask of the data is an object of the one class.

    The defaults are those of the published ViT-B, whose masked autoencoder is given by `init_encoder_from`.
    `init_from` gives the image encoder of a SAM instead. Reference: Li et al. 2022, section A.2; detectron2,
    projects/ViTDet.
    """

    model: DetectorConfig = ANY_OBJECT
    data: DataConfig = PUBLISHED_DATA
    sampling: SamplingConfig = SamplingConfig()
    optimizer: OptimizerConfig = PUBLISHED_OPTIMIZER
    steps: Period = 184_375  # optimizer steps
    mask_size: Side = 1024  # side at which the target masks are kept, pixels; the input frame scaled
    drop_path: Rate = 0.1  # rate of stochastic depth in the encoder's last block; it rises from 0 in the first

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.num_classes != 1 or self.model.sigmoid_scores:
            raise UserError(
                "expected a detector of one class with softmax scores to train (model.category_ids (1,)), got "
                f"{self.model.num_classes} classes: masks of the data have no classes"
            )
        if self.finetune.cache_embeddings or self.finetune.cache_views:
            raise UserError(
                "expected no finetune.cache-embeddings or finetune.cache-views: a detector is trained on images; "
                "leave it out"
            )
