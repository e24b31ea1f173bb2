"""Trains a model: `python train.py configs/tiny.py [--resume] [--data.path FOLDER] [any field of the config]`."""

import sys

from sam_jax.config_file import load_config
from sam_jax.training.loop import train


def main(arguments: list[str]) -> int:
    resume = "--resume" in arguments
    try:
        config = load_config([argument for argument in arguments if argument != "--resume"])
        train(config, resume=resume)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
