"""Counts the clicks to an IoU of 80, 85 and 90 percent: the protocol of interactive segmentation.

sam-jax eval noc --data FOLDER
sam-jax eval noc --data FOLDER --datasets GrabCut Berkeley DAVIS --methods sam ritm:PATH

The embedded model on the 20 objects of grabcut20: 15.45, 16.30 and 19.25 clicks (14, 15 and 19 never get there);
region growing 16.30, 16.80, 17.65; a disc never. 33 seconds on one shared core.
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.noc import NocConfig


def get_config() -> NocConfig:
    return NocConfig(data=REQUIRED)
