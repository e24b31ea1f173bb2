"""First part of the embedded `tiny` model: crops of 128 pixels, at which a step costs a fifth of one at 256.

python train.py configs/tiny_crops.py && python train.py configs/tiny.py
"""

import dataclasses
from pathlib import Path

from sam_jax.config import TINY, DataConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/tiny_crops"),
        model=dataclasses.replace(TINY, name="tiny_crops", image_size=128),
        data=DataConfig(
            batch_size=4,
            masks_per_image=16,
            # From the whole picture in 128 pixels to crops at 1.5 times the scale of a whole picture in 256.
            scale_range=(1.0, 3.0),
            flip_probability=0.5,
            colour_jitter=0.2,
            min_area=12,
        ),
        prompts=PromptConfig(point_rounds=0, refine_rounds=0, box_probability=0.25),
        loss=LossConfig(size=64),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            warmup_steps=100,
            decay_steps=(4000,),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=1.0,  # nothing is pre-trained
            clip_norm=1.0,
        ),
        steps=5000,
        drop_path=0.0,  # a run this short underfits
        decoder_dropout=0.0,
        remat=False,
        validate_every=250,
        save_every=250,
    )
