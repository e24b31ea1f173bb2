"""`sam-jax convert`: checkpoints from one format to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from sam_jax.config import NO_OPTIONS, EverythingOptions


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts a checkpoint between the official .pth, Hugging Face and this project's safetensors.

    The source's format is seen from its content, the target's from its name: .pth official, .safetensors ours, a
    folder Hugging Face. Checkpoints of CLIP, of RITM and of detectron2's ViTDet detectors become .safetensors.
    """

    source: tyro.conf.Positional[Path]
    """Checkpoint to read."""
    target: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in a .safetensors."""
    everything: EverythingOptions = NO_OPTIONS
    overwrite: bool = False
    """Replace the target if it exists."""

    def run(self) -> None:
        """Writes the target."""
        from sam_jax.checkpoints import convert_checkpoint

        convert_checkpoint(
            self.source, self.target, dtype=self.dtype, everything=self.everything, overwrite=self.overwrite
        )
        print(f"wrote {self.target}")
