"""Evaluates masks from texts on a COCO-format set with referring expressions, captions or category names.

sam-jax eval text --data annotations.json --model runs/text/model.safetensors [--clip clip_l14_336]
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.text import TextEvalConfig


def get_config() -> TextEvalConfig:
    return TextEvalConfig(data=REQUIRED, model="runs/text/model.safetensors")
