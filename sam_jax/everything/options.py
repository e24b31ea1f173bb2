"""Defines the options that `everything` and `engine run` have in common: which model finds all masks, and how."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sam_jax.everything.config import MaskGeneratorConfig
    from sam_jax.everything.generator import SamAutomaticMaskGenerator


@dataclasses.dataclass(frozen=True)
class GeneratorOptions:
    """The model, and how it finds masks."""

    model: str = "tiny"
    """Name (tiny, vit_b, vit_l, vit_h) or path of a checkpoint in any known format."""
    preset: Literal["official", "paper", "proposals", "tiny"] | None = None
    """Settings to start from. official: as the released code; paper: as SA-1B was made; proposals: up to 1000 masks,
    ranked; tiny: thresholds that suit the embedded model. By default tiny for that model, official for others."""
    points_per_side: int | None = None
    """Points along a side of the grid, in place of the preset's; so are the following."""
    pred_iou_thresh: float | None = None
    """Masks with a predicted IoU above this stay."""
    stability_score_thresh: float | None = None
    """Masks with at least this stability stay."""
    box_nms_thresh: float | None = None
    """Of two masks whose boxes overlap with an IoU above this the better one stays."""
    crop_n_layers: int | None = None
    """Layers of crops that are segmented like images of their own."""
    min_mask_region_area: int | None = None
    """Holes and islands of fewer pixels are removed."""
    points_per_batch: int | None = None
    """Points decoded together."""
    images_per_device: int = 1
    """Images encoded and decoded together on each device; more of them keep an accelerator busy."""
    devices: Literal["mesh", "pmap"] = "mesh"
    """How all local devices are used: as one program over a mesh, or with pmap."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the arithmetic."""

    def config(self) -> MaskGeneratorConfig:
        """Returns the preset, with what was given in place of its values, and masks as COCO run lengths.

        Raises:
            UserError: a value is out of its range.
        """
        from sam_jax.everything.config import PRESETS

        preset = PRESETS[self.preset or ("tiny" if self.model == "tiny" else "official")]
        fields = {field.name for field in dataclasses.fields(preset)}
        given = dataclasses.asdict(self).items()
        changes = {name: value for name, value in given if name in fields and value is not None}
        return dataclasses.replace(preset, output_mode="coco_rle", **changes)

    def settings(self) -> dict[str, Any]:
        """Returns what the masks depend on, as JSON takes it."""
        return {"model": self.model, "dtype": self.dtype, **dataclasses.asdict(self.config())}

    def load(self) -> SamAutomaticMaskGenerator:
        """Loads the model and returns the generator, on all local devices.

        Raises:
            UserError, OSError: the model cannot be loaded; see `load_model`.
        """
        import jax

        from sam_jax.checkpoints.hub import load_model
        from sam_jax.everything.generator import SamAutomaticMaskGenerator
        from sam_jax.parallel.local import LocalDevices

        return SamAutomaticMaskGenerator(
            load_model(self.model, dtype=self.dtype),
            self.config(),
            devices=LocalDevices(tuple(jax.local_devices()), self.devices),
            images_per_device=self.images_per_device,
        )


DEFAULT = GeneratorOptions()
PAPER = GeneratorOptions(preset="paper")
