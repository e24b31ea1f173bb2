"""Evaluates the embedded model's object proposals on COCO images, beside regions of similar colour.

sam-jax eval proposals --annotations instances_val2017.json --images val2017
sam-jax eval proposals --annotations lvis_v1_val.json --images coco --model vit_h

Measured with --max-images 100, mask AR@1000 of all, small, medium, large objects in percent: Felzenszwalb 13.4, 10.4,
13.5, 17.6; the embedded model's figures are in docs/model_card_small.md.
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.proposals import ProposalsConfig


def get_config() -> ProposalsConfig:
    return ProposalsConfig(annotations=REQUIRED)
