"""The embedded model on held-out images, against what a user has without a model.

python eval.py configs/eval_tiny.py
"""

from sam_jax.evals.single_point import SinglePointConfig


def get_config() -> SinglePointConfig:
    return SinglePointConfig()
