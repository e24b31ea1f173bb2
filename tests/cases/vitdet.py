"""Small ViTDet detectors with random weights, images for them, and what of a result is recorded and compared."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

from sam_jax.checkpoints.detector import POSITIONS, detectron2_shapes
from sam_jax.config import ViTConfig
from sam_jax.detection.config import DetectorConfig

# Windows that need padding, maps with odd sides, and boxes on all four maps.
SMALL = DetectorConfig(
    name="small",
    encoder=ViTConfig(image_size=160, dim=32, depth=2, heads=2, window_size=4, global_attention_blocks=(1,)),
    category_ids=(1, 2, 3, 5, 8),
    channels=16,
    fc_dim=32,
    box_size=40.0,
    pre_nms=200,
    proposals=120,
    score_threshold=0.1,
    detections=30,
)
CASES = {
    "mask_rcnn": SMALL,
    "cascade": dataclasses.replace(SMALL, cascade=True),
    "cascade_lvis": dataclasses.replace(SMALL, cascade=True, sigmoid_scores=True, score_threshold=0.5),
}
SIZES = ((112, 160), (160, 101))  # (h, w) of the images
PRETRAINING = (1, 6**2 + 1, 32)


def random_state(config: DetectorConfig) -> dict[str, np.ndarray]:
    """Draws detectron2's tensors, each from a seed of its own; they keep the magnitude of what passes, none is zero."""
    state = {}
    for name, shape in detectron2_shapes(config).items():
        shape = PRETRAINING if name == POSITIONS else shape
        noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
        if len(shape) == 1:
            is_scale = name.endswith("weight")
            noise = 0.2 * noise + (1.0 if is_scale else 0.0)
        elif "rel_pos" in name or name == POSITIONS:
            noise = 0.3 * noise
        else:
            noise = noise / np.sqrt(np.prod(shape[1:]))
        state[name] = noise.astype(np.float32)
    return state


def make_images() -> list[np.ndarray]:
    """Draws blocks of colour with noise."""
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 255, (-(-h // 16), -(-w // 16), 3)) for h, w in SIZES]
    whole = [b.repeat(16, 0).repeat(16, 1)[:h, :w] for b, (h, w) in zip(blocks, SIZES, strict=True)]
    return [np.clip(x + rng.integers(-20, 20, x.shape), 0, 255).astype(np.uint8) for x in whole]


def summary(
    maps: list[np.ndarray], proposals: list[np.ndarray], detections: list[dict[str, np.ndarray]]
) -> dict[str, Any]:
    """What is recorded.

    Args:
        maps: p2 to p6, (B, h, w, C).
        proposals: boxes of each image.
        detections: boxes, scores, classes and masks of each image.
    """
    return {
        "maps": [project(x) for x in maps],
        "proposals": [sorted(boxes.round(3).tolist()) for boxes in proposals],  # those of near scores may swap
        "detections": [
            {
                "boxes": found["boxes"].round(4).tolist(),
                "scores": found["scores"].round(6).tolist(),
                "classes": found["classes"].tolist(),
                "masks": [project(mask) for mask in found["masks"]],
            }
            for found in detections
        ],
    }


def project(array: np.ndarray) -> float:
    """Returns a mean with random signs: it changes with any of the numbers, and with their order."""
    signs = np.random.default_rng(1).choice([-1.0, 1.0], array.size)
    return round(float(array.reshape(-1).astype(np.float64) @ signs) / array.size**0.5, 5)
