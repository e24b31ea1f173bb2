"""Object proposals of the embedded model on held-out COCO pictures, beside regions of like colour.

python eval.py configs/eval_proposals.py
python eval.py configs/eval_proposals.py --annotations lvis_v1_val.json --images coco --split None --model vit_h

Measured with --max-pictures 20 --points-per-side 16 (a quarter of the paper's 64 along each side) on one core of a CPU,
mask AR@1000 of all, small, medium, large objects in percent: sam 5.4, 0.2, 5.1, 14.6; sam single output (32 x 32
points) 2.8, 0.0, 7.2, 1.7; Felzenszwalb 15.1, 13.0, 16.0, 17.7. The embedded model sees pictures at 128 pixels.
"""

from sam_jax.evals.proposals import ProposalsConfig


def get_config() -> ProposalsConfig:
    return ProposalsConfig(split="val2017")
