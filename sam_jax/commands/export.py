"""`sam-jax export`: the model of a training run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from sam_jax.bounds import CheckedFields, Steps
from sam_jax.config import NO_OPTIONS, EverythingOptions


@dataclasses.dataclass(frozen=True)
class Export(CheckedFields):
    """Writes the model of a training run's checkpoint in any format.

    The name of the target tells the format: .pth official, .safetensors ours, a folder Hugging Face.
    Example: sam-jax export runs/finetune sam.pth --step 2000
    """

    run_folder: tyro.conf.Positional[Path]
    """Folder of the run."""
    target: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    step: Steps | Literal["best"] | None = None
    """Step of the checkpoint, or best: the one that validated best; by default the last."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in a .safetensors."""
    everything: EverythingOptions = NO_OPTIONS
    overwrite: bool = False
    """Replace the target if it exists."""

    def run(self) -> None:
        """Writes the target."""
        from sam_jax.checkpoints import check_destination, export_checkpoint
        from sam_jax.training.export import load_run

        check_destination(self.target, everything=self.everything, overwrite=self.overwrite)
        model = load_run(self.run_folder, self.step)
        export_checkpoint(
            self.target,
            model.params,
            model.config,
            dtype=self.dtype,
            everything=dataclasses.replace(model.everything, **self.everything.to_fields()),
            overwrite=self.overwrite,
        )
        print(f"wrote {self.target}")
