"""Evaluates the embedded model's masks for the annotated boxes of COCO images.

sam-jax eval instances --annotations instances_val2017.json --images val2017
sam-jax eval instances --annotations lvis_v1_val.json --images coco --boxes boxes.json
sam-jax eval instances --annotations instances_val2017.json --detector vitdet.safetensors

Measured on 284 images of val2017, AP / AP50 / AP of large objects / mIoU in percent: the box as the mask 22.5 / 58.6 /
26.7 / 59.4; the embedded model's figures are in docs/model_card_small.md.
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.instances import InstancesConfig


def get_config() -> InstancesConfig:
    return InstancesConfig(annotations=REQUIRED)
