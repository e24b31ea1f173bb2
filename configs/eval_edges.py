"""Evaluates edges from the embedded model's masks on BSDS500, beside Sobel, Canny and people.

sam-jax eval edges --data BSDS500
sam-jax eval edges --data BSDS500 --maps FOLDER  # edge maps ID.png made elsewhere
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.edges import EdgesConfig


def get_config() -> EdgesConfig:
    return EdgesConfig(data=REQUIRED)
