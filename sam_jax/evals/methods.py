"""Segmenters by the names that configs of evaluations use."""

from __future__ import annotations

from sam_jax.checkpoints.hub import load_model
from sam_jax.errors import UserError
from sam_jax.evals.baselines import BASELINES
from sam_jax.evals.ritm import PREFIX, RitmSegmenter
from sam_jax.evals.segmenters import SamSegmenter, Segmenter
from sam_jax.ritm import ZoomIn


def open_segmenter(method: str, model: str, zoom: ZoomIn = ZoomIn()) -> Segmenter:  # noqa: B008
    """Loads what a method needs.

    Args:
        method: `sam`, the name of a baseline, or `ritm:PATH` with the path of a checkpoint.
        model: name or path of the checkpoint of `sam`.
        zoom: of RITM.

    Raises:
        ValueError: an unknown method; or what loading a checkpoint raises.
    """
    if method == SamSegmenter.name:
        return SamSegmenter(load_model(model))
    if method.startswith(PREFIX):
        return RitmSegmenter.from_method(method, zoom)
    if method not in BASELINES:
        raise UserError(f"unknown method {method!r}; known are {[SamSegmenter.name, *BASELINES, PREFIX + 'PATH']}")
    return BASELINES[method]()
