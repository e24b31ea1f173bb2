"""RITM (Sofiiuk et al. 2021), the interactive segmentation that the Segment Anything paper compares with; inference."""

from pathlib import Path

from sam_jax.ritm.checkpoint import save_ritm
from sam_jax.ritm.config import HRNET18, HRNET18S, HRNET32, RITM_SIZES, RitmConfig
from sam_jax.ritm.convert import convert_ritm, load_ritm_params
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
    "convert_ritm",
    "load_ritm",
    "save_ritm",
]


def load_ritm(path: str | Path) -> Ritm:
    """A model from a published `.pth` or from our own file; see `sam_jax.ritm.convert.load_ritm_params`."""
    params, config = load_ritm_params(path)
    return Ritm(config, params)
