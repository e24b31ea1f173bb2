"""Evaluates a model: `python eval.py CONFIG ...` is `sam-jax eval CONFIG ...`, from a clone."""

import sys

from sam_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
