"""Counts the masks that the filters of a config leave out, and refuses data of which they leave nothing.

A run on images without masks would go on for hours with a loss of 0 and export what it started from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from sam_jax.config import DataConfig
from sam_jax.errors import UserError

logger = logging.getLogger(__name__)

ENOUGH_IMAGES = 200  # after which data without a single mask is refused, or a warning is due, if an epoch is not less

TOO_SMALL_BEFORE, TOO_LARGE, TOO_SMALL, NOT_SEEN = "min_original_area", "max_area_fraction", "min_area", "not seen"
"""Why a mask is left out: the field of `DataConfig` that does it, or that a crop or what was pasted hides it."""


def describe_filters(dropped: Mapping[str, int], config: DataConfig) -> str:
    """Returns how many masks each filter has left out, with its value and the option that sets it."""
    reasons = {
        TOO_SMALL_BEFORE: f"smaller than {config.min_original_area} pixels of the image (data.min-original-area)",
        TOO_LARGE: f"larger than {config.max_area_fraction:g} of the image (data.max-area-fraction)",
        TOO_SMALL: f"smaller than {config.min_area} pixels of the scaled image (data.min-area)",
        NOT_SEEN: "outside the crop, or hidden",
    }
    found = [f"{dropped[name]} {reason}" for name, reason in reasons.items() if dropped.get(name)]
    return ", ".join(found) if found else "the images have none"


class MaskCounts:
    """Counts the masks of the first images of a run.

    Args:
        config: names the filters.
        images: in an epoch.
        what: is done with the images, for the messages.
    """

    def __init__(self, config: DataConfig, images: int, what: str = "train on") -> None:
        self._config, self._what = config, what
        self._enough = min(images, ENOUGH_IMAGES)
        self._images = self._used = 0
        self._dropped: Counter[str] = Counter()

    def count(self, used: int, dropped: Iterable[str]) -> None:
        """Counts one image: the masks that are used, and why each other one that was looked at is not.

        Raises:
            UserError: enough images were counted, and not one mask is used.
        """
        if self._images >= self._enough:
            return
        self._images += 1
        self._used += used
        self._dropped.update(dropped)
        if self._images == self._enough:
            self.check()

    def check(self) -> None:
        """Judges what was counted; warns if the filters leave out more masks than they leave.

        Raises:
            UserError: there are no masks.
        """
        reasons = describe_filters(self._dropped, self._config)
        if not self._used:
            raise UserError(
                f"no mask to {self._what} in the first {self._images} images that can be used: {reasons}; "
                "change these options, or give other data"
            )
        by_filter = sum(count for name, count in self._dropped.items() if name != NOT_SEEN)
        if by_filter > self._used:
            logger.warning(
                "of the masks in the first %d images %d are used and %d are left out: %s",
                self._images,
                self._used,
                by_filter,
                reasons,
            )
