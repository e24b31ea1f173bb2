"""Trains the `small` model at first: on crops of a third of its size, fast. `small` says how; `small_512` goes on.

With positions as fractions of the frame, what is learned here holds at full size.
"""

import dataclasses
from pathlib import Path

from sam_jax.config import PromptConfig, TrainConfig
from sam_jax.configs.small import get_config as full_size


def get_config() -> TrainConfig:
    config = full_size()
    return dataclasses.replace(
        config,
        out=Path("runs/small_crops"),
        init_from=None,
        model=config.model.with_image_size(256),
        data=dataclasses.replace(
            config.data, batch_size=8, scale_range=(1.0, 2.5), masks_per_image=8, mosaic_probability=0.35, min_area=12
        ),
        prompts=PromptConfig(point_rounds=1, refine_rounds=0, box_probability=0.4),
        loss=dataclasses.replace(config.loss, size=128, iou=1.0),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-3, warmup_steps=200, decay_steps=()),
        steps=4200,
        ema_decay=0.998,
    )
