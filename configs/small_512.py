"""Trains the `small` model at 512 pixels, two thirds of its size, after `small_crops`. `small` says how, and goes on.

Crops at larger scales stand for what is seen at full size.
"""

import dataclasses
from pathlib import Path

from sam_jax.config import PromptConfig, TrainConfig
from sam_jax.configs.small import get_config as full_size


def get_config() -> TrainConfig:
    config = full_size()
    return dataclasses.replace(
        config,
        out=Path("runs/small_512"),
        model=config.model.with_image_size(512),
        data=dataclasses.replace(
            config.data, batch_size=4, scale_range=(0.8, 2.5), masks_per_image=11, mosaic_probability=0.4, min_area=20
        ),
        prompts=PromptConfig(point_rounds=2, refine_rounds=0, box_probability=0.45, box_noise=0.06),
        loss=dataclasses.replace(config.loss, iou=2.0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=6e-4, warmup_steps=50, decay_steps=()),
        steps=2500,
        validate_every=500,
        validation_batches=10,
        save_every=100,
    )
