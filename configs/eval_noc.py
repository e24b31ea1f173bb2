"""Counts the clicks to an IoU of 80, 85 and 90 percent: the protocol of interactive segmentation.

sam-jax eval noc --data FOLDER
sam-jax eval noc --data FOLDER --datasets GrabCut Berkeley DAVIS --methods sam ritm:PATH

On the 20 objects of grabcut20 region growing takes 16.30, 16.80 and 17.65 clicks, and a disc never gets there; the
embedded model's figures are in docs/model_card_small.md.
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.noc import NocConfig


def get_config() -> NocConfig:
    return NocConfig(data=REQUIRED)
