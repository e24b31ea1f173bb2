"""Checkpoints between this project, the official code and Hugging Face, in every direction.

Only reading and writing `.pth` files needs PyTorch.
"""

from sam_jax.convert.files import convert_file, load_any
from sam_jax.convert.layout import params_from_state, state_from_params

__all__ = ["convert_file", "load_any", "params_from_state", "state_from_params"]
