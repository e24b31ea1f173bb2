"""Evaluates the embedded model on held-out images, beside methods that need no model.

sam-jax eval small --data FOLDER
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.single_point import SinglePointConfig


def get_config() -> SinglePointConfig:
    return SinglePointConfig(data=REQUIRED)
