"""How everything mode finds masks: the official code's parameters, the paper's, and settings that suit a purpose."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np

from sam_jax.bounds import Area, Batch, CheckedFields, CountOrNone, Fraction, GridSide, Seed, Within
from sam_jax.errors import UserError
from sam_jax.ops.grids import layer_grids


@dataclasses.dataclass(frozen=True)
class MaskGeneratorConfig(CheckedFields):
    """How everything mode finds masks.

    The official parameters and defaults come first, in their order; the last five come from the paper.
    """

    points_per_side: GridSide | None = 32
    """Points along one side of the grid; None if point_grids is given."""
    points_per_batch: Batch = 64
    """Points decoded together; more of them need more memory."""
    pred_iou_thresh: Fraction = 0.88
    """Masks with a predicted IoU above this stay; 0 keeps all."""
    stability_score_thresh: Fraction = 0.95
    """Masks with at least this stability stay."""
    stability_score_offset: Annotated[float, Within(0, 100)] = 1.0
    """The stability is the IoU of the masks at the thresholds + and - this, in logits."""
    box_nms_thresh: Fraction = 0.7
    """Of two masks of a crop whose boxes overlap with an IoU above this, the one of higher predicted IoU stays."""
    crop_n_layers: Annotated[int, Within(0, 6)] = 0
    """Layers of crops that are segmented like images of their own; layer n has 2^n x 2^n."""
    crop_nms_thresh: Fraction = 0.7
    """Likewise between crops; the mask of the smaller crop stays."""
    crop_overlap_ratio: Annotated[float, Within(0, 0.999)] = 512 / 1500
    """Fraction of the short side that neighbouring crops of layer 1 have in common."""
    crop_n_points_downscale_factor: Annotated[int, Within(1, 1024)] = 1
    """Layer n has points_per_side / this^n points along a side."""
    point_grids: tuple[np.ndarray, ...] | None = None
    """Grids (N, 2) of (x, y) in [0, 1], one for each layer, in place of points_per_side."""
    min_mask_region_area: Area = 0
    """Holes and islands of fewer pixels are removed."""
    output_mode: Literal["binary_mask", "uncompressed_rle", "coco_rle"] = "binary_mask"
    """Form of a record's `segmentation`: an array (H, W), run lengths, or COCO's compressed run lengths."""
    max_mask_area: Fraction = 1.0
    """Masks that cover at least this fraction of the image are dropped; 1 keeps all."""
    drop_small_masks: bool = False
    """Drop a mask whose every island is smaller than min_mask_region_area; else its largest one stays."""
    max_masks: CountOrNone = 0
    """Most masks of an image, the best by the mean of predicted IoU and stability; 0 keeps all, as they come."""
    multimask_output: bool = True
    """Take three masks per point; else the single one that the model gives for prompts without ambiguity."""
    nms_seed: Seed | None = None
    """Within a crop, rank masks at random, with this seed, and not by predicted IoU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.points_per_side is None) == (self.point_grids is None):
            raise UserError("expected either points_per_side or point_grids, got both or neither")
        factor = self.crop_n_points_downscale_factor**self.crop_n_layers
        if self.points_per_side is not None and self.points_per_side < factor:
            raise UserError(
                f"no point is left in layer {self.crop_n_layers}: lower crop_n_layers or "
                f"crop_n_points_downscale_factor, or raise points_per_side from {self.points_per_side} to {factor}"
            )
        grids = self.grids()
        if len(grids) <= self.crop_n_layers:
            raise UserError(f"expected {self.crop_n_layers + 1} point_grids, one for each layer, got {len(grids)}")
        for layer, grid in enumerate(grids):
            if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
                raise UserError(
                    f"expected at least one point (x, y) for layer {layer}, got a grid of shape {grid.shape}"
                )
            if not ((grid >= 0) & (grid <= 1)).all():
                raise UserError(f"expected grid points in [0, 1], fractions of width and height, got {grid.tolist()}")

    def grids(self) -> list[np.ndarray]:
        """Returns the points (N, 2) of each layer."""
        if self.point_grids is not None:
            return [np.asarray(grid, np.float64) for grid in self.point_grids]
        assert self.points_per_side
        return layer_grids(self.points_per_side, self.crop_n_layers, self.crop_n_points_downscale_factor)


PRESETS = {
    # What the released code does if nothing is said.
    "official": MaskGeneratorConfig(),
    # How SA-1B was made (paper, B); there, with another checkpoint and from images of full resolution.
    "paper": MaskGeneratorConfig(
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        max_mask_area=0.95,
        drop_small_masks=True,
    ),
    # Object proposals (paper, D.3).
    "proposals": MaskGeneratorConfig(
        points_per_side=64, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9, max_masks=1000
    ),
    # Its ablation: one mask per point. The predicted IoU does not tell such masks apart, hence the random ranking.
    "proposals_single": MaskGeneratorConfig(
        points_per_side=128,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=0.95,
        max_masks=1000,
        multimask_output=False,
        nms_seed=0,
    ),
}
