"""Masks of the embedded model for the annotated boxes of held-out COCO pictures.

python eval.py configs/eval_instances.py
python eval.py configs/eval_instances.py --split None --annotations lvis_v1_val.json --images coco --boxes boxes.json

Measured on all 284 pictures of val2017 that are there, on one core of a CPU, AP / AP50 / mIoU in percent: sam 10.3 /
36.8 / 43.7; sam one pass 11.8 / 35.7 / 41.6; the box as the mask 22.5 / 58.6 / 59.4. The embedded model sees pictures
at 128 pixels: it is no match for a box around a small object.
"""

from sam_jax.evals.instances import InstancesConfig


def get_config() -> InstancesConfig:
    return InstancesConfig(split="val2017")
