"""Masks of the embedded model for the annotated boxes of held-out COCO pictures.

python eval.py configs/eval_instances.py
python eval.py configs/eval_instances.py --split None --annotations instances_val2017.json --images val2017 --model vit_h --boxes detections.json
"""

from sam_jax.evals.instances import InstancesConfig


def get_config() -> InstancesConfig:
    return InstancesConfig(split="val2017")
