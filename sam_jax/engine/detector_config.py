"""What `sam-jax engine train --detector` runs where no other config is given: a detector of anything, on the frozen
image encoder of the project's model, whose size `model.encoder` takes.

`out`, `data.path` and `init_from` are the project's.
"""

from pathlib import Path

from sam_jax.config import TINY, DataConfig, FinetuneConfig, OptimizerConfig
from sam_jax.detection.config import DetectorConfig
from sam_jax.training.detector.config import DetectorTrainConfig, SamplingConfig


def get_config() -> DetectorTrainConfig:
    return DetectorTrainConfig(
        out=Path("run"),
        model=DetectorConfig(
            name="any_object",
            encoder=TINY,
            category_ids=(1,),
            channels=64,
            fc_dim=256,
            convolutions=2,
            anchor_cells=4.0,
            box_size=56.0,
            pre_nms=200,
            proposals=150,
            detections=50,
        ),
        data=DataConfig(
            format="sa1b",
            batch_size=4,
            masks_per_image=24,
            scale_range=(0.7, 2.0),
            flip_probability=0.5,
            colour_jitter=0.2,
            min_area=24,
        ),
        sampling=SamplingConfig(anchors=128, boxes=64, pre_nms=200),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=50,
            decay_steps=(500,),
            weight_decay=0.05,
            layer_decay=1.0,
            clip_norm=5.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(pyramid|rpn_head|box_heads|mask_head)"),
        steps=600,
        mask_size=128,
        drop_path=0.0,
        remat=False,
        validate_every=200,
        save_every=100,
    )
