"""Defines the config of a RITM model."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sam_jax.bounds import Deviation, Mean, PositivePixels, Within
from sam_jax.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class RitmConfig(ModelConfig):
    """An HRNet with the OCR head that takes clicks, and a previous mask, into its stem.

    The defaults are the model that the Segment Anything paper compares with.

    Reference: Sofiiuk et al. 2021, section 4; the published code's `models/iter_mask`.
    """

    name: str = "hrnet32"
    width: Annotated[int, Within(1, 512)] = 32  # channels of the highest resolution; each lower one has twice as many
    ocr_width: Annotated[int, Within(1, 2048)] = 128  # channels of the head's keys; its features have twice as many
    small: bool = False  # fewer blocks and modules ("HRNet18s")
    previous_mask: bool = True  # takes the previous mask as an input; the non-iterative baselines do not
    leaky_relu: bool = True  # slope 0.2, between the two convolutions of the clicks; else ReLU
    click_radius: PositivePixels = 5.0  # radius of the disks that stand for clicks, pixels of the network's input
    pixel_mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)  # RGB, 0-1
    pixel_std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)  # RGB, 0-1

    @property
    def blocks(self) -> int:
        """Returns the number of residual blocks in a row, in the stem and in each branch of each module."""
        return 2 if self.small else 4

    @property
    def modules(self) -> tuple[int, int, int]:
        """Returns the numbers of modules with two, three and four resolutions."""
        return (1, 3, 2) if self.small else (1, 4, 3)


HRNET32 = RitmConfig()
HRNET18 = RitmConfig(name="hrnet18", width=18, ocr_width=64)
HRNET18S = RitmConfig(name="hrnet18s", width=18, ocr_width=48, small=True)
RITM_SIZES: dict[str, RitmConfig] = {config.name: config for config in (HRNET18S, HRNET18, HRNET32)}
