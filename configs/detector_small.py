"""Trains a small detector of anything that has a mask, on the frozen image encoder of the embedded `small` model.

    sam-jax train detector_small --data.path FOLDER
    sam-jax detect photos --model runs/detector_small/model.safetensors --out boxes.json

Hardware: two CPU cores. Not measured yet with this encoder. Its use is in the data engine, where it is trained on the
very kind of images that it is for; a few hundred images of all kinds are few to learn objects from.
"""

from pathlib import Path

from sam_jax.config import SMALL, DataConfig, FinetuneConfig, OptimizerConfig
from sam_jax.detection.config import DetectorConfig
from sam_jax.training.detector.config import DetectorTrainConfig, SamplingConfig


def get_config() -> DetectorTrainConfig:
    return DetectorTrainConfig(
        out=Path("runs/detector_small"),
        model=DetectorConfig(
            name="detector_small",
            encoder=SMALL.encoder,
            category_ids=(1,),
            channels=64,
            fc_dim=256,
            convolutions=2,
            anchor_cells=4.0,
            pre_nms=200,
            proposals=150,
            detections=50,
        ),
        data=DataConfig(
            datasets=("coco_small",),
            batch_size=4,
            masks_per_image=24,
            scale_range=(0.7, 2.0),
            flip_probability=0.5,
            colour_jitter=0.2,
            min_area=100,
        ),
        sampling=SamplingConfig(anchors=128, boxes=64, pre_nms=200),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=50,
            decay_steps=(1000,),
            weight_decay=0.05,
            layer_decay=1.0,
            clip_norm=5.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(pyramid|rpn_head|box_heads|mask_head)"),
        steps=1200,
        mask_size=256,
        drop_path=0.0,
        remat=False,
        init_from=SMALL.name,
        validate_every=400,
        save_every=200,
    )
