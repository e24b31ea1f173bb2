"""Clicks that a method needs for an IoU of 80, 85 and 90 percent: the protocol of interactive segmentation.

python eval.py configs/eval_noc.py
python eval.py configs/eval_noc.py --data FOLDER --datasets GrabCut Berkeley DAVIS --model vit_h --methods sam ritm:PATH
"""

from sam_jax.evals.noc import NocConfig


def get_config() -> NocConfig:
    return NocConfig()
