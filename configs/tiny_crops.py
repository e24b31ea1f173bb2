"""Trains the embedded `tiny` model at first: single prompts on crops, until clicks find objects. `tiny` goes on.

sam-jax train tiny_crops --data.path FOLDER
"""

from pathlib import Path

from sam_jax.config import TINY, DataConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/tiny_crops"),
        model=TINY,
        data=DataConfig(
            batch_size=4,
            masks_per_image=16,
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
            decay_steps=(),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=1.0,  # nothing is pre-trained
            clip_norm=1.0,
        ),
        steps=1250,
        drop_path=0.0,  # a run this short underfits
        decoder_dropout=0.0,
        remat=False,
        validate_every=250,
        save_every=250,
    )
