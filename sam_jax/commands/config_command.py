"""Defines the base of `sam-jax train` and `sam-jax eval`: a config by name or path, and its fields as options."""

from __future__ import annotations

import dataclasses
import inspect
from typing import ClassVar

import tyro

from sam_jax.config_file import Task, list_configs


@dataclasses.dataclass(frozen=True)
class ConfigCommand:
    """A command whose options depend on the config that it is given, so that it reads its arguments itself."""

    task: ClassVar[Task]

    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """Name or path of a config, then --FIELD VALUE for any of its fields."""

    def run(self) -> int:
        """Runs the config, or lists those that are shipped."""
        if self.arguments and self.arguments[0] not in ("-h", "--help"):
            return self.run_config(self.arguments)
        print(f"usage: sam-jax {self.task} CONFIG [--FIELD VALUE ...]\n\n{inspect.getdoc(type(self))}\n")
        print("CONFIG is the path of a file with get_config(), or one of those shipped:\n")
        shipped = list_configs(self.task)
        width = max(map(len, shipped))
        print("\n".join(f"  {name:{width}}  {first_line}" for name, first_line in shipped.items()))
        print(f"\nsam-jax {self.task} CONFIG --help lists the fields of a config.")
        return 0 if self.arguments else 2

    def run_config(self, arguments: tuple[str, ...]) -> int:
        """Reads the config with the arguments' changes, runs it, and returns the exit code."""
        raise NotImplementedError
