"""Runs RITM (Sofiiuk et al. 2021), the interactive segmentation that the Segment Anything paper compares with."""

from sam_jax.ritm.config import HRNET18, HRNET18S, HRNET32, RITM_SIZES, RitmConfig
from sam_jax.ritm.model import Ritm
from sam_jax.ritm.predictor import THRESHOLD, RitmPredictor
from sam_jax.ritm.zoom import ZoomIn

__all__ = [
    "HRNET18",
    "HRNET18S",
    "HRNET32",
    "RITM_SIZES",
    "THRESHOLD",
    "Ritm",
    "RitmConfig",
    "RitmPredictor",
    "ZoomIn",
]
