"""A training run of four steps of the least model, with a checkpoint after the second; for `campaign.commands`."""

import dataclasses
from pathlib import Path

from campaign.checkpoint_inputs import CONFIG
from cases.training import make_config
from sam_jax.config import DataConfig, LossConfig, ParallelConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return dataclasses.replace(
        make_config(model=CONFIG, loss=LossConfig(size=16)),
        out=Path("run"),
        data=DataConfig(batch_size=2, masks_per_image=2),
        prompts=PromptConfig(point_rounds=0, refine_rounds=0),
        steps=4,
        validate_every=4,
        validation_batches=1,
        save_every=2,
        log_every=1,
        parallel=ParallelConfig("mesh", 1, 1),
    )
