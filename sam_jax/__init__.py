"""Segment Anything in JAX and Flax."""

from sam_jax.checkpoints.hub import load_clip, load_model
from sam_jax.clip.config import ClipConfig
from sam_jax.clip.model import Clip
from sam_jax.config import SamConfig
from sam_jax.data.images import read_image
from sam_jax.everything.config import MaskGeneratorConfig
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.model import Sam
from sam_jax.predictor import Masks, SamPredictor, predict_batch
from sam_jax.prompting.prompts import Prompt

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
