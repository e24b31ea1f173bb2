"""`sam-jax eval`: an evaluation by a config."""

from __future__ import annotations

import dataclasses

from sam_jax.commands.config_command import ConfigCommand
from sam_jax.config_file import load_config
from sam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Eval(ConfigCommand):
    """Evaluates a model, and prints and writes a report. What is measured already is not measured again.

    Example: sam-jax eval edges --data BSDS500 --model vit_b
    """

    task = "eval"

    def run_config(self, arguments: tuple[str, ...]) -> int:
        import jax

        from sam_jax.evals.report import Evaluation

        config: Evaluation = load_config(arguments, self.task)
        if not hasattr(config, "evaluate"):
            raise UserError(f"{arguments[0]} is no evaluation; see sam-jax eval --help")
        report = config.evaluate()
        if jax.process_index() == 0:  # every process has the same report
            path = report.write(config.out)
            print(f"{report.title}\n\n{report.table}\n{path}")
        return int(report.failed)
