"""`sam-jax engine`: the stages of the data engine as commands."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from sam_jax.engine.automatic import Run, run


@dataclasses.dataclass(frozen=True)
class Engine:
    """The data engine."""

    command: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[Annotated[Run, tyro.conf.subcommand("run")] | Annotated[None, tyro.conf.Suppress]]
    ]


def engine(options: Engine) -> int:
    assert options.command is not None  # tyro asks for one
    return run(options.command)
