"""Edge detectors that know only gradients: what the paper's table begins with.

The smoothing was chosen on 16 of BSDS500's training images. Both look at the gradient of the grey image, smoothed
with a Gaussian. Maps are comparable from image to image, since the benchmark's ODS takes one threshold for all: 1
is the gradient of a step from black to white, and the square root spreads weak edges over more of the 99 thresholds.
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
    """Length of the Sobel gradient, thinned across edges."""

    name: ClassVar[str] = "Sobel"

    sigma: float = 3.0  # of the Gaussian, pixels

    @property
    def identity(self) -> str:
        return f"{self.name} {dataclasses.asdict(self)}"

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        edges = sobel_magnitude(jnp.asarray(_smooth_grey(image, self.sigma))) / _largest_gradient(self.sigma)
        return np.asarray(thin_edges(jnp.sqrt(edges.clip(0, 1))))


@dataclasses.dataclass(frozen=True)
class Canny:
    """Canny's detector as a soft map: for each pixel the highest threshold at which it is still an edge.

    The detector (OpenCV's) is run with `levels` high thresholds; the low one is a fixed part of it. To threshold the
    map is to run Canny with that threshold. One scale, as in the benchmark's own baseline.
    """

    name: ClassVar[str] = "Canny"

    sigma: float = 2.5  # of the Gaussian, pixels
    low: float = 0.4  # the low threshold over the high one
    levels: int = 99

    @property
    def identity(self) -> str:
        return f"{self.name} {dataclasses.asdict(self)}"

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
        grey = _smooth_grey(image, self.sigma)
        finer = 16  # gradients of the smoothed image are not rounded to whole greys
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
    """Sobel gradient of a step from 0 to 255 along an axis, smoothed."""
    return 8 * 255 / (math.sqrt(2 * math.pi) * sigma)


BASELINES: dict[str, type[Sobel] | type[Canny]] = {Sobel.name: Sobel, Canny.name: Canny}
