"""Masks of the embedded model for the annotated boxes of held-out COCO pictures.

python eval.py configs/eval_instances.py
python eval.py configs/eval_instances.py --split None --annotations lvis_v1_val.json --images coco --boxes boxes.json
"""

from sam_jax.evals.instances import InstancesConfig


def get_config() -> InstancesConfig:
    return InstancesConfig(split="val2017")
