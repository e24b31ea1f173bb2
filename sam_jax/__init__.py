"""Segment Anything in JAX and Flax."""

from sam_jax.config import SamConfig
from sam_jax.model import Sam
from sam_jax.ops.prompts import Prompt
from sam_jax.predictor import SamPredictor, predict_batch

__all__ = ["Prompt", "Sam", "SamConfig", "SamPredictor", "predict_batch"]
