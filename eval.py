"""Evaluates: `python eval.py configs/eval_tiny.py [--model NAME|PATH] [--data FOLDER] [--out FOLDER]`."""

import sys

import jax

from sam_jax.config_file import load_config
from sam_jax.evals.report import Evaluation


def main(arguments: list[str]) -> int:
    try:
        config: Evaluation = load_config(arguments)
        if not hasattr(config, "evaluate"):
            raise ValueError(f"{arguments[0]} is no evaluation; see configs/eval_tiny.py")
        report = config.evaluate()
        if jax.process_index() != 0:  # every process has the same report
            return int(report.failed)
        path = report.write(config.out)
    except (ValueError, OSError, ImportError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    print(f"{report.title}\n\n{report.table}\n{path}")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
