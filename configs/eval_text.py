"""Text to mask on any COCO-format set with referring expressions, captions or category names.

python eval.py configs/eval_text.py --data annotations.json --model runs/text/model.safetensors [--clip clip_l14_336]
"""

from pathlib import Path

from sam_jax.evals.text import TextEvalConfig


def get_config() -> TextEvalConfig:
    return TextEvalConfig(data=Path("annotations.json"), model="runs/text/model.safetensors")
