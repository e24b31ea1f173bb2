"""Defines the options that `everything` and `engine run` have in common: which model finds all masks, and how."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sam_jax.bounds import Area, Batch, CheckedFields, Fraction, GridSide, Within

if TYPE_CHECKING:
    from sam_jax.everything.config import MaskGeneratorConfig
    from sam_jax.everything.generator import SamAutomaticMaskGenerator


@dataclasses.dataclass(frozen=True)
class GeneratorOptions(CheckedFields):
    """The model, and how it finds masks."""

    base: ClassVar[str] = "official"  # preset without --preset, in which the model's own values take their places
    model: str = "small"
    """Name (small, vit_b, vit_l, vit_h), path of a checkpoint in any known format, or a Hugging Face OWNER/NAME."""
    preset: Literal["official", "paper", "proposals"] | None = None
    """Settings to start from, as they are. official: as the released code; paper: as SA-1B was made; proposals: up to
    1000 masks, ranked. By default official (sam-jax engine run: paper) with the values that the model's checkpoint
    holds in place of its own, such as thresholds that suit the model."""
    points_per_side: GridSide | None = None
    """Points along a side of the grid, in place of the preset's; so are the following."""
    pred_iou_thresh: Fraction | None = None
    """Masks with a predicted IoU above this stay."""
    stability_score_thresh: Fraction | None = None
    """Masks with at least this stability stay."""
    stability_score_offset: Annotated[float, Within(0, 100)] | None = None
    """The stability is the IoU of the masks at the thresholds + and - this, in logits."""
    box_nms_thresh: Fraction | None = None
    """Of two masks whose boxes overlap with an IoU above this the better one stays."""
    crop_n_layers: Annotated[int, Within(0, 6)] | None = None
    """Layers of crops that are segmented like images of their own."""
    crop_nms_thresh: Fraction | None = None
    """Likewise between crops, as box_nms_thresh within one."""
    min_mask_region_area: Area | None = None
    """Holes and islands of fewer pixels are removed."""
    points_per_batch: Batch | None = None
    """Points decoded together."""
    images_per_device: Batch = 1
    """Images encoded and decoded together on each device; more of them keep an accelerator busy."""
    devices: Literal["mesh", "pmap"] = "mesh"
    """How all local devices are used: as one program over a mesh, or with pmap."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the arithmetic."""

    def config(self) -> MaskGeneratorConfig:
        """Returns the preset, with what was given in place of its values, and masks as COCO run lengths.

        Without a preset the model's own values come in between; they are read from its checkpoint.

        Raises:
            UserError: a value is out of its range, or the model is unknown.
        """
        from sam_jax.checkpoints.hub import model_everything_options
        from sam_jax.everything.config import PRESETS

        preset = PRESETS[self.preset or self.base]
        own = {} if self.preset else model_everything_options(self.model).to_fields()
        fields = {field.name for field in dataclasses.fields(preset)}
        given = {name: value for name, value in dataclasses.asdict(self).items() if name in fields}
        changes = own | {name: value for name, value in given.items() if value is not None}
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


@dataclasses.dataclass(frozen=True)
class DatasetOptions(GeneratorOptions):
    """The same, for a data set like SA-1B."""

    base: ClassVar[str] = "paper"


DEFAULT = GeneratorOptions()
PAPER = DatasetOptions()
