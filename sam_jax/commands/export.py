"""`sam-jax export`: the model of a training run, or any model as a program that runs without this package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import tyro

from sam_jax.bounds import CheckedFields, Steps
from sam_jax.config import NO_OPTIONS, EverythingOptions
from sam_jax.errors import AlreadyExists, UserError


@dataclasses.dataclass(frozen=True)
class Export(CheckedFields):
    """Writes the model of a training run's checkpoint in any format, or any model as ONNX or StableHLO.

    Of a checkpoint, the name of the target tells the format: .pth official, .safetensors ours, a folder Hugging Face.
    Examples: sam-jax export runs/finetune sam.pth --step 2000; sam-jax export small small_onnx --format onnx
    """

    source: tyro.conf.Positional[str]
    """Folder of a run; with --format onnx or stablehlo also the name or path of a model."""
    target: tyro.conf.Positional[Path]
    """Checkpoint to write, or the folder for the programs."""
    format: Literal["checkpoint", "onnx", "stablehlo"] = "checkpoint"
    """onnx: for ONNX Runtime, with the official names; stablehlo: for JAX alone, on CPU, GPU and TPU."""
    step: Steps | Literal["best"] | None = None
    """Of a run, step of the checkpoint, or best: the one that validated best; by default the last."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the numbers in a .safetensors, and of weights and products in a program."""
    batch: bool = False
    """With --format onnx: the encoder takes several images at a time."""
    everything: EverythingOptions = NO_OPTIONS
    overwrite: bool = False
    """Replace the target if it exists."""

    def run(self) -> None:
        """Writes the target."""
        if self.format == "checkpoint":
            self._write_checkpoint()
        else:
            self._write_programs()
        print(f"wrote {self.target}")

    def _write_checkpoint(self) -> None:
        from sam_jax.checkpoints import check_destination, export_checkpoint
        from sam_jax.training.export import load_run

        if self.batch:
            raise UserError("--batch goes with --format onnx")
        check_destination(self.target, everything=self.everything, overwrite=self.overwrite)
        model = load_run(Path(self.source), self.step)
        export_checkpoint(
            self.target,
            model.params,
            model.config,
            dtype=self.dtype,
            everything=dataclasses.replace(model.everything, **self.everything.to_fields()),
            overwrite=self.overwrite,
        )

    def _write_programs(self) -> None:
        from sam_jax.checkpoints.hub import load_model
        from sam_jax.export.folder import export_onnx, export_stablehlo
        from sam_jax.training.export import load_run

        if self.everything.to_fields():
            raise UserError("--everything options are for checkpoints: a program holds no options of everything mode")
        is_free = not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir()))
        if not is_free and not self.overwrite:
            raise AlreadyExists(f"{self.target} exists; choose another name, or say --overwrite to replace its files")
        run = Path(self.source)
        if (run / "checkpoints").is_dir():
            params, config, _ = load_run(run, self.step)
        elif self.step is not None:
            raise UserError(f"--step is for a training run, and {self.source} is the name or path of a model")
        else:
            model = load_model(self.source)
            params, config = model.params, model.config
        dtype = jnp.dtype(self.dtype)
        if self.format == "onnx":
            export_onnx(self.target, params, config, dtype=dtype, batch=self.batch)
        elif self.batch:
            raise UserError("--batch goes with --format onnx: a StableHLO encoder takes any number of images as it is")
        else:
            export_stablehlo(self.target, params, config, dtype=dtype)
