"""Evaluates the embedded model's masks for the annotated boxes of COCO images.

sam-jax eval instances --annotations instances_val2017.json --images val2017
sam-jax eval instances --annotations lvis_v1_val.json --images coco --boxes boxes.json
sam-jax eval instances --annotations instances_val2017.json --detector vitdet.safetensors

Measured on 284 images of val2017, AP / AP50 / AP of large objects / mIoU in percent: sam 12.7 /
39.1 / 24.9 / 46.9; sam one pass 14.3 / 40.4 / 30.6 / 46.1; the box as the mask 22.5 / 58.6 / 26.7 / 59.4. The
embedded model sees images at 128 pixels: it is no match for a box around a small object. With --detector of
detector_tiny and --class-agnostic: AP 0.1, 0.2 and 0.3, and 0.3 of the detector's own masks.
"""

from sam_jax.config_file import REQUIRED
from sam_jax.evals.instances import InstancesConfig


def get_config() -> InstancesConfig:
    return InstancesConfig(annotations=REQUIRED)
