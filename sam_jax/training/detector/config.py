"""One training run of a detector."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from sam_jax.config import DataConfig, FinetuneConfig, OptimizerConfig, ParallelConfig
from sam_jax.detection.config import DetectorConfig
from sam_jax.errors import UserError

ANY_OBJECT = DetectorConfig(name="any_object_vitdet_b", category_ids=(1,))
PUBLISHED_DATA = DataConfig(batch_size=64, scale_range=(0.1, 2.0), flip_probability=0.5)
PUBLISHED_OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, warmup_steps=250, decay_steps=(163_889, 177_546), layer_decay=0.7
)
FINETUNE, PARALLEL = FinetuneConfig(), ParallelConfig()
STAGE_IOUS = (0.5, 0.6, 0.7)  # of each box head: from which IoU on a box is its object's


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Which anchors and boxes a step learns from, drawn anew each time. Per image."""

    anchors: int = 256
    anchor_positives: float = 0.5  # at most this share are an object's
    anchor_ious: tuple[float, float] = (0.3, 0.7)  # below: background; from the second on, or an object's best: its own
    boxes: int = 512
    box_positives: float = 0.25
    pre_nms: int = 2000  # best anchors of each map that enter non-maximum suppression


@dataclasses.dataclass(frozen=True)
class DetectorTrainConfig:
    """The defaults are those of the published ViT-B, whose masked autoencoder is given by `init_encoder_from`.

    Every mask of the data is an object of the one class. Reference: Li et al. 2022, section A.2; detectron2,
    projects/ViTDet.
    """

    out: Path  # folder of checkpoints, metrics and the exported detector
    model: DetectorConfig = ANY_OBJECT
    data: DataConfig = PUBLISHED_DATA
    sampling: SamplingConfig = SamplingConfig()
    optimizer: OptimizerConfig = PUBLISHED_OPTIMIZER
    finetune: FinetuneConfig = FINETUNE
    parallel: ParallelConfig = PARALLEL
    steps: int = 184_375
    seed: int = 0
    mask_size: int = 1024  # side at which the true masks are kept, pixels; the input frame scaled
    drop_path: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; params, norms and losses are float32
    remat: bool = True  # recompute encoder blocks in the backward pass
    ema_decay: float | None = None  # also keep an exponential moving average of the params; it is what is exported
    max_skipped: int = 20  # updates in a row without finite gradients, which are left out, before the run stops
    init_from: str | None = None  # name or path of a SAM model whose image encoder starts the run
    init_encoder_from: Path | None = None  # masked-autoencoder ViT (He et al. 2021) that starts the image encoder
    log_every: int = 20
    validate_every: int = 1000
    validation_batches: int = 8
    save_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.model.num_classes != 1 or self.model.sigmoid_scores:
            raise UserError(
                "expected a detector of one class with softmax scores to train (model.category_ids (1,)), got "
                f"{self.model.num_classes} classes: masks of the data have no classes"
            )
