"""Evaluates: `python eval.py configs/eval_tiny.py [--model NAME|PATH] [--data FOLDER] [--out FOLDER]`."""

import json
import sys
from pathlib import Path

from sam_jax.cli_config import load_config
from sam_jax.evals.baselines import BASELINES
from sam_jax.evals.segmenters import SamSegmenter, Segmenter
from sam_jax.evals.single_point import SinglePointConfig, report, run
from sam_jax.hub import load_model


def main(arguments: list[str]) -> int:
    try:
        config: SinglePointConfig = load_config(arguments)

        def make_segmenter(method: str) -> Segmenter:
            if method == SamSegmenter.name:
                return SamSegmenter(load_model(config.model))
            if method not in BASELINES:
                raise ValueError(f"unknown method {method!r}; known are {[SamSegmenter.name, *BASELINES]}")
            return BASELINES[method]()

        results = run(config, make_segmenter)
    except (ValueError, OSError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    table = report(results)
    write_atomically(config.out / "report.json", json.dumps(results, indent=1))
    write_atomically(config.out / "report.md", table)
    print(f"mIoU in percent after 1, 3 and 5 clicks\n\n{table}\n{config.out / 'report.md'}")
    return 0


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
