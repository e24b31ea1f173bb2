"""A classical baseline for object proposals: regions of similar colour at several scales.

Reference: Felzenszwalb, Huttenlocher 2004, whose regions selective search (Uijlings et al. 2013) starts from.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from sam_jax.errors import MissingPackage
from sam_jax.evals.mask_scores import Result
from sam_jax.ops.boxes import box_nms
from sam_jax.ops.rle import encode_rle


@dataclasses.dataclass(frozen=True)
class Felzenszwalb:
    """Proposes the regions of scikit-image's `felzenszwalb` at several scales, coarse scales and large regions first.

    Box NMS removes duplicates, which are mostly the same region at two scales, as for SAM's masks.
    """

    name: ClassVar[str] = "Felzenszwalb"

    scales: tuple[float, ...] = (
        1600,
        800,
        400,
        200,
        100,
    )  # scales of the segmentation; larger scales give larger regions
    sigma: float = 0.8  # standard deviation of the Gaussian that smooths the image, in pixels
    min_size: int = 100  # smallest region, in pixels
    box_nms_thresh: float = 0.9  # box IoU above which only the first region is kept
    max_masks: int = 1000  # most proposals per image

    @property
    def identity(self) -> str:
        return f"{self.name} {dataclasses.asdict(self)}"

    def propose(self, images: list[UInt8[np.ndarray, "H W 3"]]) -> list[list[Result]]:
        return [self._propose(image) for image in images]

    def _propose(self, image: np.ndarray) -> list[Result]:
        try:
            from skimage.measure import regionprops
            from skimage.segmentation import felzenszwalb
        except ImportError as error:
            raise MissingPackage(f"{self.name} needs scikit-image: pip install 'sam_jax[eval]'") from error

        regions = []
        for scale in self.scales:
            labels = felzenszwalb(image, scale, self.sigma, self.min_size)
            regions += sorted(regionprops(labels + 1), key=lambda region: -region.area)
        corners = np.array([region.bbox for region in regions])  # (y0, x0, y1, x1), ends exclusive
        kept = box_nms(corners[:, [1, 0, 3, 2]], -np.arange(len(regions)), self.box_nms_thresh)[: self.max_masks]
        proposals = []
        for rank, i in enumerate(kept):
            mask = np.zeros(image.shape[:2], bool)
            mask[regions[i].slice] = regions[i].image
            proposals.append({"segmentation": encode_rle(mask), "score": 1 - rank / self.max_masks})
        return proposals
