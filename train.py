"""Trains a model: `python train.py CONFIG ...` is `sam-jax train CONFIG ...`, from a clone."""

import sys

from sam_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
