"""Defines a detector to find objects with: config and params, with a jitted function for all of one size."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.detector import Detections, detect_objects
from sam_jax.modeling import normalize_images
from sam_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """One ViTDet detector. Get one from `sam_jax.checkpoints.load_detector`, or build it from config and params.

    Args:
        config: the model's numbers.
        params: as `sam_jax.detection.init_detector` gives them; moved to the default device.
        dtype: number format of the arithmetic.
    """

    config: DetectorConfig
    params: Params = dataclasses.field(repr=False)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        # Once, and not with every call.
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))

    def detect(self, images: UInt8[Array | np.ndarray, "B S S 3"], sizes: Int[Array | np.ndarray, "B 2"]) -> Detections:
        """Finds the objects on images in the input frame; compiled once per number of images.

        Args:
            images: RGB, 0-255, from `sam_jax.ops.transforms.fit_image`.
            sizes: (h, w) of the part that is image, pixels of the input frame.
        """
        return _detect(self.params, images, sizes, config=self.config, dtype=self.dtype)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _detect(params: Params, images: Array, sizes: Array, *, config: DetectorConfig, dtype: Any) -> Detections:
    return detect_objects(params, normalize_images(images, sizes, config.encoder), sizes, config, dtype=dtype)
