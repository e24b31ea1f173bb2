"""Segment Anything in JAX and Flax."""

from sam_jax.automatic_mask_generator import MaskGeneratorConfig, SamAutomaticMaskGenerator
from sam_jax.clip import Clip
from sam_jax.config import ClipConfig, SamConfig
from sam_jax.hub import load_clip, load_model
from sam_jax.model import Sam
from sam_jax.ops.prompts import Prompt
from sam_jax.ops.transforms import read_image
from sam_jax.predictor import Masks, SamPredictor, predict_batch

__all__ = [
    "Clip",
    "ClipConfig",
    "MaskGeneratorConfig",
    "Masks",
    "Prompt",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamConfig",
    "SamPredictor",
    "load_clip",
    "load_model",
    "predict_batch",
    "read_image",
]
