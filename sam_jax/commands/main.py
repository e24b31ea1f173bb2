"""Runs the `sam-jax` command: chooses the subcommand, and turns a user's mistakes into messages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Protocol, Union

import tyro

from sam_jax.commands.annotate import Annotate
from sam_jax.commands.compile_cache import use_compilation_cache
from sam_jax.commands.config_command import ConfigCommand
from sam_jax.commands.convert import Convert
from sam_jax.commands.demo import Demo
from sam_jax.commands.detect import Detect
from sam_jax.commands.engine import Engine
from sam_jax.commands.eval import Eval
from sam_jax.commands.everything import Everything
from sam_jax.commands.export import Export
from sam_jax.commands.prepare import Prepare
from sam_jax.commands.rate import Rate
from sam_jax.commands.search import Search
from sam_jax.commands.segment import Segment
from sam_jax.commands.train import Train
from sam_jax.errors import EXPECTED_ERRORS
from sam_jax.progress import show_warnings


class Command(Protocol):
    """A dataclass whose fields are the options of a subcommand, with their help."""

    def run(self) -> int | None:
        """Runs the subcommand, and returns the exit code; None: 0.

        Raises:
            UserError, OSError: something is wrong with options or files; the message is for the user to read.
        """
        ...


COMMANDS: dict[str, type[Command]] = {
    "segment": Segment,
    "everything": Everything,
    "detect": Detect,
    "search": Search,
    "convert": Convert,
    "prepare": Prepare,
    "train": Train,
    "export": Export,
    "eval": Eval,
    "annotate": Annotate,
    "engine": Engine,
    "rate": Rate,
    "demo": Demo,
}


def parse(arguments: Sequence[str]) -> Command:
    """Returns the subcommand with its options; where there is none, prints help or what is wrong, and exits.

    Raises:
        SystemExit: 0 after help, 2 after a mistake.
    """
    name, rest = arguments[:1], arguments[1:]
    if name and issubclass(COMMANDS.get(name[0], object), ConfigCommand):
        arguments = [*name, "--", *rest]
    choices: Any = Union[  # noqa: UP007  # made of the table
        tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())
    ]
    return tyro.cli(
        choices,
        prog="sam-jax",
        description="Segment Anything in JAX. sam-jax --version prints the version.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Mistakes of the user end with a message and exit code 2, not with a traceback.

    1: some images could not be read or segmented; 130: interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"sam-jax {version('sam_jax')}")
        return 0
    command = parse(arguments)
    use_compilation_cache()
    try:
        with show_warnings():
            return command.run() or 0
    except EXPECTED_ERRORS as error:
        print(f"sam-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sam-jax: interrupted; what was finished is kept", file=sys.stderr)
        return 130
