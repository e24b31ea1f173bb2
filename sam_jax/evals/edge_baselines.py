"""Sobel and Canny edge detectors, the classical baselines of the paper's edge detection table.

Both use the gradient of the grey image after Gaussian smoothing; the smoothing was tuned on 16 training images of
BSDS500. Values have the same scale in all images, since ODS uses one threshold for all of them: 1 is the gradient of a
step from black to white. The square root spreads weak edges over more of the 99 thresholds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from sam_jax.ops.edges import sobel_magnitude, thin_edges


@dataclasses.dataclass(frozen=True)
class Sobel:
    """Detects edges by the magnitude of the Sobel gradient, with non-maximum suppression across edges."""

    name: ClassVar[str] = "Sobel"

    sigma: float = 3.0  # standard deviation of the Gaussian, in pixels

    @property
    def identity(self) -> str:
        return f"{self.name} {dataclasses.asdict(self)}"

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        edges = sobel_magnitude(jnp.asarray(_smooth_grey(image, self.sigma))) / _largest_gradient(self.sigma)
        return np.asarray(thin_edges(jnp.sqrt(edges.clip(0, 1))))


@dataclasses.dataclass(frozen=True)
class Canny:
    """Turns Canny's detector into a soft edge map: the highest threshold at which a pixel is still an edge.

    OpenCV's detector runs with `levels` high thresholds; the low threshold is a fixed fraction of the high one.
    Thresholding the map equals running Canny with that threshold. It uses one scale, as the benchmark's own baseline.
    """

    name: ClassVar[str] = "Canny"

    sigma: float = 2.5  # standard deviation of the Gaussian, in pixels
    low: float = 0.4  # low threshold as a fraction of the high one
    levels: int = 99  # number of high thresholds

    @property
    def identity(self) -> str:
        return f"{self.name} {dataclasses.asdict(self)}"

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        grey = _smooth_grey(image, self.sigma)
        finer = 16  # factor on the gradients, which OpenCV's Canny takes as integers
        dx, dy = (np.rint(finer * cv2.Sobel(grey, cv2.CV_32F, *order)).astype(np.int16) for order in ((1, 0), (0, 1)))
        edges = np.zeros(grey.shape, np.float32)
        for level in range(1, self.levels + 1):
            high = finer * _largest_gradient(self.sigma) * (level / self.levels) ** 2
            found = cv2.Canny(dx, dy, self.low * high, high, L2gradient=True)
            if not found.any():
                break
            edges[found > 0] = level / self.levels
        return edges


def _smooth_grey(image: np.ndarray, sigma: float) -> Float[np.ndarray, "H W"]:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _largest_gradient(sigma: float) -> float:
    """Returns the Sobel gradient of a smoothed step from 0 to 255 along an axis."""
    return 8 * 255 / (math.sqrt(2 * math.pi) * sigma)


BASELINES: dict[str, type[Sobel] | type[Canny]] = {Sobel.name: Sobel, Canny.name: Canny}
