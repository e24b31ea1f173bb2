"""`sam-jax train`: a training run by a config."""

from __future__ import annotations

import dataclasses

from sam_jax.commands.config_command import ConfigCommand
from sam_jax.config import TrainConfig
from sam_jax.config_file import load_config
from sam_jax.errors import UserError

COMPILE_ONLY = "--compile-only"


@dataclasses.dataclass(frozen=True)
class Train(ConfigCommand):
    """Trains a model. With --resume a run that was stopped goes on.

    With --compile-only TOPOLOGY, such as v5e:16x16, nothing is trained: the step is compiled for these TPUs, which need
    not be there, and what a chip holds is printed.

    Example: sam-jax train finetune_coco --data.path FOLDER --init-from vit_b
    """

    task = "train"

    def run_config(self, arguments: tuple[str, ...]) -> int:
        arguments, topology = _take_topology(arguments)
        config = load_config([argument for argument in arguments if argument != "--resume"], self.task)
        if topology is not None:
            from sam_jax.training.ahead import compile_only

            if not isinstance(config, TrainConfig):
                raise UserError(f"--compile-only is for configs of Segment Anything, got a {type(config).__name__}")
            print(compile_only(config, topology))
            return 0
        from sam_jax.training.loop import train

        train(config, resume="--resume" in arguments)
        return 0


def _take_topology(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """Returns the arguments without --compile-only, and the topology that came with it."""
    if COMPILE_ONLY not in arguments:
        return arguments, None
    place = arguments.index(COMPILE_ONLY)
    if place + 1 == len(arguments):
        raise UserError(f"expected a topology after {COMPILE_ONLY}, such as v5e:16x16")
    return (*arguments[:place], *arguments[place + 2 :]), arguments[place + 1]
