"""Counts what the filters of everything mode drop, so that an image without masks can be explained."""

from __future__ import annotations

import dataclasses

from sam_jax.everything.config import MaskGeneratorConfig
from sam_jax.ops.select import Dropped


@dataclasses.dataclass(frozen=True)
class FilterCounts:
    """How many masks the model predicted for an image, or for several, and how many each filter dropped.

    The filters come in their order: a mask that several would drop counts for the first of them.
    """

    predicted: int = 0
    predicted_iou: int = 0  # too low a predicted IoU
    stability: int = 0  # too low a stability
    cut_off: int = 0  # cut off by a side of the crop that is none of the image
    large: int = 0  # nearly the whole image
    small: int = 0  # nothing but small islands; without duplicates of others

    @classmethod
    def of_device(cls, predicted: int, dropped: Dropped) -> FilterCounts:
        """Returns the counts of the masks of one batch of points."""
        return cls(predicted, *(int(count) for count in dropped))

    def __add__(self, other: FilterCounts) -> FilterCounts:
        own, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return FilterCounts(*(one + more for one, more in zip(own, others, strict=True)))

    def describe(self, config: MaskGeneratorConfig) -> str:
        """Returns a sentence's part that says what the filters dropped, with their settings."""
        reasons = [
            (self.predicted_iou, f"have a predicted IoU of at most {config.pred_iou_thresh:g}"),
            (self.stability, f"a stability below {config.stability_score_thresh:g}"),
            (self.cut_off, "are cut off at the side of a crop"),
            (self.large, f"cover {config.max_mask_area:.0%} of the image or more"),
            (self.small, f"have no island of {config.min_mask_region_area} pixels"),
        ]
        listed = ", ".join(f"{count} {what}" for count, what in reasons if count)
        return f"of {self.predicted} predicted masks {listed or 'none is left'}"
