"""`sam-jax convert`: checkpoints from one format to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts a checkpoint between the official .pth, Hugging Face and this project's safetensors.

    The source's format is seen from its content, the target's from its name: .pth official, .safetensors ours, a
    folder Hugging Face. A .pkl is one of detectron2's ViTDet detectors, which becomes .safetensors.
    """

    source: tyro.conf.Positional[Path]
    """Checkpoint to read."""
    target: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    ritm: bool = False
    """The source is a checkpoint of RITM, the interactive baseline; the target *.safetensors."""
    overwrite: bool = False
    """Replace the target if it exists."""

    def run(self) -> None:
        """Writes the target."""
        from sam_jax.checkpoints import convert_file
        from sam_jax.checkpoints.detector import convert_detector
        from sam_jax.checkpoints.ritm import convert_ritm

        pickled = self.source.suffix == ".pkl"
        write = convert_ritm if self.ritm else convert_detector if pickled else convert_file
        write(self.source, self.target, overwrite=self.overwrite)
        print(f"wrote {self.target}")
