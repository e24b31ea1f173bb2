"""Loads segmenters by the method names that evaluation configs use."""

from __future__ import annotations

from sam_jax.checkpoints.hub import load_model
from sam_jax.errors import UserError
from sam_jax.evals.baselines import BASELINES
from sam_jax.evals.ritm import PREFIX, RitmSegmenter
from sam_jax.evals.segmenters import SamSegmenter, Segmenter
from sam_jax.ritm import ZoomIn


def open_segmenter(method: str, model: str, zoom: ZoomIn = ZoomIn()) -> Segmenter:  # noqa: B008
    """Loads the segmenter of a method.

    Args:
        method: `sam`, the name of a baseline, or `ritm:PATH` with the path of a checkpoint.
        model: name of a released model, or path of a checkpoint, for `sam`.
        zoom: zoom-in settings of RITM.

    Raises:
        UserError: the method is unknown, or its checkpoint cannot be loaded.
    """
    if method == SamSegmenter.name:
        return SamSegmenter(load_model(model))
    if method.startswith(PREFIX):
        return RitmSegmenter.from_method(method, zoom)
    if method not in BASELINES:
        raise UserError(f"unknown method {method!r}; known are {[SamSegmenter.name, *BASELINES, PREFIX + 'PATH']}")
    return BASELINES[method]()
