"""Trains a detector of anything on the project model's frozen encoder, for `sam-jax engine train --detector`.

`out`, `data.path`, `init_from` and the size of `model.encoder` are the project's; the rest is as in detector_small.
"""

import dataclasses

from sam_jax.configs.detector_small import get_config as get_detector_small
from sam_jax.training.detector.config import DetectorTrainConfig


def get_config() -> DetectorTrainConfig:
    config = get_detector_small()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name="any_object"),
        optimizer=dataclasses.replace(config.optimizer, decay_steps=(500,)),
        steps=600,
        validate_every=200,
        save_every=100,
    )
