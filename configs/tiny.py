"""placeholder"""

import dataclasses
from pathlib import Path

from sam_jax.config import TINY, DataConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    model = dataclasses.replace(TINY, name="tiny_128", image_size=128)
    return TrainConfig(
        out=Path("runs/tiny_128"),
        model=model,
        data=DataConfig(
            batch_size=8,
            masks_per_image=8,
            scale_range=(1.0, 3.0),
            flip_probability=0.5,
            colour_jitter=0.2,
            min_area=12,
        ),
        prompts=PromptConfig(point_rounds=1, refine_rounds=0),
        loss=LossConfig(size=64),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=100,
            decay_steps=(20000,),
            weight_decay=0.05,
            layer_decay=1.0,
            clip_norm=1.0,
        ),
        steps=20000,
        drop_path=0.0,
        decoder_dropout=0.0,
        remat=False,
        validate_every=250,
        save_every=250,
        validation_batches=8,
    )
