"""Evaluates masks from one click and more on those of the paper's 23 data sets that are there, sampled as there.

sam-jax eval single_point --data FOLDER --model vit_h
sam-jax eval single_point --data FOLDER --model vit_h --first-click random
"""

from pathlib import Path

from sam_jax.config_file import REQUIRED
from sam_jax.data.zero_shot import PAPER_DATASETS
from sam_jax.evals.single_point import SinglePointConfig


def get_config() -> SinglePointConfig:
    return SinglePointConfig(
        data=REQUIRED,
        out=Path("runs/eval_single_point"),
        datasets=tuple(PAPER_DATASETS),
        methods=("sam",),
        max_images=0,
        max_masks=0,
        clicks=9,
    )
