"""Defines the configs of ViTDet detectors, and the published ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Self

from sam_jax.bounds import Boxes, CategoryId, Depth, Fraction, Layers, PositivePixels, Width, Within
from sam_jax.config import VIT_B, VIT_H, VIT_L, EncoderConfig, ModelConfig, SamConfig
from sam_jax.errors import UserError

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # of anchors, height / width
BOX_BINS, MASK_BINS = 7, 14  # side of what is pooled from a box
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
LVIS_IDS = tuple(range(1, 1204))


@dataclasses.dataclass(frozen=True)
class DetectorConfig(ModelConfig):
    """The numbers that define a ViTDet detector.

    The defaults are detectron2's `mask_rcnn_vitdet_b`; `DETECTORS` holds every published one.

    Reference: Li et al. 2022, sections 3 and A; detectron2, projects/ViTDet.
    """

    name: str = "mask_rcnn_vitdet_b"
    encoder: EncoderConfig = VIT_B.encoder
    category_ids: tuple[CategoryId, ...] = COCO_IDS  # numbers of the classes in result files, in the classes' order
    cascade: bool = False  # three box heads, each on the boxes of the one before, and one box for all classes
    channels: Width = 256  # channels of the pyramid and the heads
    fc_dim: Width = 1024  # width of the box heads' last layer
    convolutions: Annotated[Depth, Layers(tensors=6)] = 4  # 3 x 3 convolutions in each box head and in the mask head
    anchor_cells: Annotated[float, Within(0, 1000, above=True)] = 8.0  # side of an anchor, cells of its map
    box_size: PositivePixels = 224.0  # side from which on a box is pooled from the map of the encoder's stride
    pre_nms: Boxes = 1000  # best anchors of each map that enter non-maximum suppression
    proposals: Boxes = 1000  # best proposals of all maps that are kept
    proposal_nms: Fraction = 0.7  # IoU above which the worse of two proposals is dropped
    score_threshold: Fraction = 0.05  # score that an object must exceed
    box_nms: Fraction = 0.5  # IoU above which the worse of two boxes of a class is dropped
    detections: Boxes = 100  # most objects on an image
    sigmoid_scores: bool = False  # a sigmoid for each class (LVIS) in place of a softmax over all and the background

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder.stride % 4 or self.encoder.grid_size < 4:
            raise UserError(
                "expected an encoder with a stride of a multiple of 4 pixels and at least 4 cells along a side, for "
                f"the pyramid's strides; got stride {self.encoder.stride}, {self.encoder.grid_size} cells along a side"
            )
        if not self.category_ids:
            raise UserError("expected at least one class in category_ids, got none")

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @property
    def strides(self) -> tuple[int, int, int, int, int]:
        """Returns the pixels of the input frame per cell of each of the maps p2 to p6."""
        p = self.encoder.stride
        return p // 4, p // 2, p, 2 * p, 4 * p

    @property
    def sides(self) -> tuple[int, int, int, int, int]:
        """Returns the cells along a side of each of the maps p2 to p6."""
        grid = self.encoder.grid_size
        return 4 * grid, 2 * grid, grid, grid // 2, (grid // 2 + 1) // 2

    @property
    def box_weights(self) -> tuple[tuple[float, float], ...]:
        """Returns the factors on the offsets of centres, and on the logarithms of sizes, that each box head learns."""
        return ((10.0, 5.0), (20.0, 10.0), (30.0, 15.0)) if self.cascade else ((10.0, 5.0),)

    @property
    def box_classes(self) -> int:
        """Returns the number of classes for which a box head moves a box."""
        return 1 if self.cascade else self.num_classes

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Reads what `to_fields` gave; in old files the encoder is the config of a whole SAM.

        Raises:
            UserError: as `JsonConfig.from_fields`.
        """
        encoder = fields.get("encoder") if isinstance(fields, Mapping) else None
        if isinstance(encoder, Mapping) and "kind" not in encoder:
            fields = {**fields, "encoder": SamConfig.from_fields(encoder).encoder.to_fields()}
        return super().from_fields(fields)


def _published() -> dict[str, DetectorConfig]:
    detectors: dict[str, DetectorConfig] = {}
    for model in (VIT_B, VIT_L, VIT_H):
        for kind in ("mask_rcnn", "cascade_mask_rcnn"):
            name = f"{kind}_{model.name.replace('vit', 'vitdet')}"
            coco = DetectorConfig(name=name, encoder=model.encoder, cascade=kind.startswith("cascade"))
            lvis = dataclasses.replace(
                coco,
                name=f"{name}_lvis",
                category_ids=LVIS_IDS,
                score_threshold=0.02,
                detections=300,
                sigmoid_scores=True,
            )
            detectors |= {coco.name: coco, lvis.name: lvis}
    return detectors


DETECTORS = _published()
