"""Object proposals of the embedded model on held-out COCO pictures, beside regions of like colour.

python eval.py configs/eval_proposals.py
python eval.py configs/eval_proposals.py --annotations lvis_v1_val.json --images coco --split None --model vit_h
"""

from sam_jax.evals.proposals import ProposalsConfig


def get_config() -> ProposalsConfig:
    return ProposalsConfig(split="val2017")
