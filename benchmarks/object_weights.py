"""Random weights that find something: masks of many places and sizes, some of which pass everything mode's filters.

Plain random weights are of no use there. Their logits are noise of one sign from patch to patch, every mask's box is
nearly the whole image, the non-maximum suppression leaves one mask or none, and what is left has a hundred times the
run lengths of an object's outline. Here all that costs time stays as it is, and the end is arranged:

- pixels attend to a click by where it is (equal queries and keys), and more strongly;
- the image's embedding and what is added to it are scaled down: they move the outlines and do not make them;
- the four pixels that an upscaling step makes of one are alike;
- the last layer of each mask is fitted (least squares) to blobs around clicks, with a radius of a fifth, a tenth, a
  twentieth of the image's side. It hits them in part: masks are irregular, of many sizes, and some are empty;
- logits are scaled so that half of the masks have a stability of 0.95, predicted IoUs so that half are above 0.88.

So about a quarter of the masks pass the published thresholds, with any image and any size of the model.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from official import random_params

from sam_jax.config import SamConfig
from sam_jax.types import Params

RADII = (0.2, 0.1, 0.05)  # of the three masks' blobs, shares of the input frame's side
MEDIAN_IOU, MEDIAN_STABILITY, IOU_SPREAD = 0.88, 0.95, 0.04
RIDGE = 1e-2  # of the mean variance of a channel: keeps cancellation, and with it bfloat16's noise, small


@dataclasses.dataclass(frozen=True)
class Readout:
    """What is fitted, as JSON takes it."""

    channels: list[list[float]]  # (3, C): each mask's logits as a sum over the upscaled embedding's channels
    iou_scale: list[float]  # (3,)
    iou_shift: list[float]  # (3,)


def object_params(config: SamConfig) -> Params:
    """Random params, arranged as above, but for the last layers."""
    flat = dict(flatten_dict(random_params(config), sep="/"))
    for name, value in flat.items():
        if "cross_attn" in name and "/k_proj/" in name:
            flat[name] = flat[name.replace("k_proj", "q_proj")]
        elif "image_to_token/out_proj/kernel" in name:
            flat[name] = 3 * value
        elif name.startswith("image_encoder/neck_3/") or name.endswith("no_mask_embed"):
            flat[name] = 0.2 * value
        elif "output_upscaling" in name and name.endswith("kernel"):
            flat[name] = np.broadcast_to(2 * value.mean((0, 1), keepdims=True), value.shape).copy()
    last = "mask_decoder/output_upscaling_3/"
    flat[last + "kernel"][..., -1], flat[last + "bias"][-1] = 0, 1  # a channel that is constant
    return unflatten_dict(flat, sep="/")


def put_readout(params: Params, readout: Readout) -> None:
    """Puts what was fitted into `params`."""
    decoder = params["mask_decoder"]
    head = decoder["iou_prediction_head"]["layers_2"]
    for mask, channels in enumerate(readout.channels, start=1):
        last = decoder[f"output_hypernetworks_mlps_{mask}"]["layers_2"]
        last["kernel"], last["bias"] = np.zeros_like(last["kernel"]), np.array(channels, np.float32)
        scale, shift = readout.iou_scale[mask - 1], readout.iou_shift[mask - 1]
        head["kernel"][:, mask] *= scale
        head["bias"][mask] = head["bias"][mask] * scale + shift


def fit_readout(features: np.ndarray, iou_predictions: np.ndarray, points: np.ndarray) -> Readout:
    """Fits the masks' last layers to what the decoder makes of an image and a grid of clicks.

    Args:
        features: (Q, h, w, C), the upscaled embedding where the image is, one pixel per patch.
        iou_predictions: (Q, 3).
        points: (Q, 2), (x, y) of the clicks in patches.
    """
    Q, h, w, C = features.shape
    side = max(h, w)
    ys, xs = np.mgrid[:h, :w] + 0.5
    squares = (xs - points[:, 0, None, None]) ** 2 + (ys - points[:, 1, None, None]) ** 2
    matrix = features.reshape(-1, C).astype(np.float64)
    centred = matrix - matrix.mean(0)
    normal = centred.T @ centred
    normal += RIDGE * np.trace(normal) / C * np.eye(C)
    channels = []
    for radius in RADII:
        near = squares / (radius * side) ** 2
        fitted = np.linalg.solve(normal, centred.T @ np.exp(-near / 2).reshape(-1))
        logits = matrix @ fitted
        level = np.quantile(logits, 1 - (near < 1).mean())
        planes = (logits - level).reshape(Q, h, w).astype(np.float32)
        fitted[-1] -= level / matrix[0, -1]  # of the channel that is constant
        channels.append((fitted * _scale([plane for plane in planes if plane.max() > 0])).tolist())
    scale = IOU_SPREAD / iou_predictions.std(0)
    return Readout(channels, scale.tolist(), (MEDIAN_IOU - np.median(iou_predictions, 0) * scale).tolist())


def _scale(planes: list[np.ndarray]) -> float:
    """What to multiply logits by, one per patch, for a median stability of `MEDIAN_STABILITY`."""
    # The decoder makes 4 x 4 pixels of a patch, here alike; between those everything mode interpolates.
    large = [cv2.resize(np.kron(plane, np.ones((4, 4), np.float32)), None, fx=2, fy=2) for plane in planes]
    low, high = 0.0, 10.0  # decimal logarithms
    while high - low > 0.01:
        middle = (low + high) / 2
        edge = 10**-middle
        stability = np.median([(plane > edge).sum() / (plane > -edge).sum() for plane in large])
        low, high = (low, middle) if stability >= MEDIAN_STABILITY else (middle, high)
    return 10**high
