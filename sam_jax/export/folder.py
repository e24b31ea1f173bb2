"""Writes the folders of exported models: the programs, what to know of them, and an example that runs without us."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from sam_jax.config import SamConfig
from sam_jax.errors import MissingPackage
from sam_jax.export.functions import most_points
from sam_jax.export.onnx_model import IR_VERSION, OPSET, decoder_model, encoder_model
from sam_jax.export.stablehlo import decoder_program, encoder_program
from sam_jax.files import read_asset, replacing_folder, write
from sam_jax.types import Params

if TYPE_CHECKING:
    import onnx

ONE_FILE = 1_800_000_000  # bytes that a file of this format holds; beyond, weights lie in a file beside it
ONNX_FILES = ("*.onnx", "*.onnx.data", "model.json", "example.py")
STABLEHLO_FILES = ("*.stablehlo", "model.json")
INPUT = (
    "RGB from 0 to 255, float32, resized so that the longer side is image_size (bilinear, sides rounded to whole "
    "pixels); not normalised, not padded"
)
SQUARE_INPUT = (
    "images (batch, image_size, image_size, 3), RGB, uint8, resized so that the longer side is image_size and padded "
    "on the right or below; sizes (batch, 2), int32: (height, width) of what is image"
)
POINTS = (
    "(x, y) in pixels of the resized image; labels 1 on the object, 0 on the background, 2 and 3 the first and the "
    "last corner of a box, -1 no point: at the end of a prompt without a box"
)
ANSWERS = (
    "logits above mask_threshold are the object; answer 0 is for prompts that leave no doubt, of the others take the "
    "one with the highest predicted IoU"
)


def export_onnx(
    folder: Path, params: Params, config: SamConfig, *, dtype: DTypeLike = jnp.float32, batch: bool = False
) -> None:
    """Writes a model as `encoder.onnx` and `decoder.onnx`, with `model.json` and `example.py`; all or nothing is there.

    Args:
        folder: the files of an earlier export there are replaced, others stay.
        dtype: of weights and products; norms, softmaxes, inputs and outputs are float32.
        batch: the encoder takes several images of one size.

    Raises:
        MissingPackage: onnx is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingPackage("export to ONNX needs onnx; pip install 'sam_jax[export]'")
    own = {"format": "onnx", "opset": OPSET, "ir_version": IR_VERSION, "batch": batch, "input": INPUT}
    models = {
        "encoder": encoder_model(params, config, dtype=dtype, batch=batch),
        "decoder": decoder_model(params, config, dtype=dtype),
    }
    with replacing_folder(folder, ONNX_FILES) as target:
        for name, model in models.items():
            _write_onnx(target / f"{name}.onnx", model)
        write(target / "model.json", json.dumps(_facts(config) | own, indent=2) + "\n")
        write(target / "example.py", read_asset("onnx_example.py"))


def export_stablehlo(folder: Path, params: Params, config: SamConfig, *, dtype: DTypeLike = jnp.float32) -> None:
    """Writes a model as `encoder.stablehlo` and `decoder.stablehlo`, which `jax.export.deserialize` reads.

    They run on CPU, GPU and TPU. The arguments are those of `export_onnx`; several images are taken in any case.
    """
    own = {"format": "stablehlo", "input": SQUARE_INPUT, "most_points": most_points(config)}
    programs = {
        "encoder": encoder_program(params, config, dtype=dtype),
        "decoder": decoder_program(params, config, dtype=dtype),
    }
    with replacing_folder(folder, STABLEHLO_FILES) as target:
        for name, program in programs.items():
            write(target / f"{name}.stablehlo", bytes(program))
        write(target / "model.json", json.dumps(_facts(config) | own, indent=2) + "\n")


def _facts(config: SamConfig) -> dict[str, Any]:
    return {
        "model": config.name,
        "image_size": config.image_size,
        "embedding": [config.embedding_dim, config.grid_size, config.grid_size],
        "low_res_size": config.low_res_size,
        "answers": config.num_mask_tokens,
        "mask_threshold": 0.0,
        "points": POINTS,
        "results": ANSWERS,
    }


def _write_onnx(path: Path, model: onnx.ModelProto) -> None:
    import onnx

    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > ONE_FILE
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)
