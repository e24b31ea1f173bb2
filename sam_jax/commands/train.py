"""`sam-jax train`: a training run by a config."""

from __future__ import annotations

import dataclasses

from sam_jax.commands.config_command import ConfigCommand
from sam_jax.config_file import load_config


@dataclasses.dataclass(frozen=True)
class Train(ConfigCommand):
    """Trains a model. With --resume a run that was stopped goes on.

    Example: sam-jax train finetune_coco --data.path FOLDER --init-from vit_b
    """

    task = "train"

    def run_config(self, arguments: tuple[str, ...]) -> int:
        from sam_jax.training.loop import train

        config = load_config([argument for argument in arguments if argument != "--resume"], self.task)
        train(config, resume="--resume" in arguments)
        return 0
