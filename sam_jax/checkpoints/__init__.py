"""Reads and writes checkpoints: every family of models in one format of ours, and in those that others publish."""

from sam_jax.checkpoints.clip import CLIP
from sam_jax.checkpoints.detector import DETECTOR
from sam_jax.checkpoints.family import Checkpoint, Family
from sam_jax.checkpoints.files import (
    check_destination,
    convert_checkpoint,
    expected_shapes,
    export_checkpoint,
    foreign_shapes,
    load_checkpoint,
    load_everything_options,
    params_from_state,
    save_checkpoint,
    state_from_params,
)
from sam_jax.checkpoints.hub import load_clip, load_detector, load_model, load_ritm
from sam_jax.checkpoints.pretraining import load_pretrained_encoder
from sam_jax.checkpoints.ritm import RITM
from sam_jax.checkpoints.sam import SAM

__all__ = [
    "CLIP",
    "DETECTOR",
    "RITM",
    "SAM",
    "Checkpoint",
    "Family",
    "check_destination",
    "convert_checkpoint",
    "expected_shapes",
    "export_checkpoint",
    "foreign_shapes",
    "load_checkpoint",
    "load_clip",
    "load_detector",
    "load_everything_options",
    "load_model",
    "load_pretrained_encoder",
    "load_ritm",
    "params_from_state",
    "save_checkpoint",
    "state_from_params",
]
