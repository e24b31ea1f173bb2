"""Checkpoints between this project, the official code and Hugging Face, in every direction.

Only reading and writing `.pth` files needs PyTorch.
"""

from sam_jax.checkpoints.files import check_destination, convert_file, load_any, save_any
from sam_jax.checkpoints.layout import params_from_state, state_from_params
from sam_jax.checkpoints.pretraining import load_pretrained_encoder

__all__ = [
    "check_destination",
    "convert_file",
    "load_any",
    "load_pretrained_encoder",
    "params_from_state",
    "save_any",
    "state_from_params",
]
