"""Names of the tensors, and the order of their axes, in PyTorch checkpoints: the official ones and Hugging Face's.

Our names are the official ones with `/` for `.` and digits joined by `_`; Hugging Face renamed some. One table of rules
gives each naming, applied to the names that a config implies; the way back is the same table read from the right.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.format import check_params, expected_shapes
from sam_jax.config import EncoderConfig, SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of
from sam_jax.modeling.encoders.base import Rules, TensorNames
from sam_jax.types import Params

Naming = Literal["official", "huggingface"]
TEXT_PROMPT = "text_projection"  # in prompt_encoder; neither the official code nor Hugging Face has it
ENCODER = "image_encoder/"  # what the names of its params begin with; its own names follow its own rules
PREFIXES: dict[Naming, str] = {"official": "image_encoder.", "huggingface": "vision_encoder."}  # of its tensors
FORMATS: dict[Naming, str] = {"official": "official", "huggingface": "Hugging Face"}

# Applied one after the other to `path/to/param` of our tree, to get to PyTorch's ways.
PYTORCH_RULES: Rules = (
    (r"_(\d+)(?=/|$)", r"/\1"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)
# Applied before those, to what is not the encoder's.
OFFICIAL_RULES: Rules = (
    (r"(point_embeddings_\d|not_a_point_embed|no_mask_embed|iou_token|mask_tokens)$", r"\1/weight"),
)

# Applied to official names.
HUGGINGFACE_RULES: Rules = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.norm", ".layer_norm"),  # norm1..4, norm_final_attn
    (r"\.neck\.(\d)", lambda m: ".neck." + ("conv1", "layer_norm1", "conv2", "layer_norm2")[int(m[1])]),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0", ".mask_embed.conv1"),
    (r"\.mask_downscaling\.1", ".mask_embed.layer_norm1"),
    (r"\.mask_downscaling\.3", ".mask_embed.conv2"),
    (r"\.mask_downscaling\.4", ".mask_embed.layer_norm2"),
    (r"\.mask_downscaling\.6", ".mask_embed.conv3"),
    (r"\.output_upscaling\.0", ".upscale_conv1"),
    (r"\.output_upscaling\.1", ".upscale_layer_norm"),
    (r"\.output_upscaling\.3", ".upscale_conv2"),
)
# Hugging Face holds the Fourier matrix under two names. Its files have both, or the first alone.
SHARED_MATRIX = "shared_image_embedding.positional_embedding"
SHARED_MATRIX_ALIAS = "prompt_encoder.shared_embedding.positional_embedding"


@dataclasses.dataclass(frozen=True)
class ForeignTensor:
    """One of our tensors as a PyTorch checkpoint holds it."""

    ours: str  # path/to/param
    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]  # theirs = ours.transpose(axes)


def foreign_tensors(config: SamConfig, naming: Naming) -> list[ForeignTensor]:
    """Every tensor of a checkpoint of this config."""
    tensors = []
    encoder_rules = encoder_names(config.encoder, naming).rules
    for ours, shape in expected_shapes(config).items():
        axes = _axes(ours, len(shape))
        if ours.startswith(ENCODER):
            name = ENCODER + rename(ours.removeprefix(ENCODER), encoder_rules)
        else:
            name = rename(ours, OFFICIAL_RULES)
        name = rename(name, PYTORCH_RULES)
        if naming == "huggingface":
            name = rename(name, (*HUGGINGFACE_RULES, *_mlp_rules(config)))
        tensors.append(ForeignTensor(ours, name, tuple(shape[axis] for axis in axes), axes))
    return tensors


def foreign_shapes(config: SamConfig, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint of this config."""
    shapes = {tensor.name: tensor.shape for tensor in foreign_tensors(config, naming)}
    if naming == "huggingface":
        shapes[SHARED_MATRIX_ALIAS] = shapes[SHARED_MATRIX]
    return shapes


def params_from_state(
    state: Mapping[str, np.ndarray], config: SamConfig, naming: Naming, source: str = "the state dict"
) -> Params:
    """A PyTorch state dict, as numpy arrays -> params, float32.

    Args:
        source: named in errors.

    Raises:
        ValueError: names every missing, extra and misshapen tensor at once, as the state dict calls them.
    """
    state = dict(state)
    if naming == "huggingface" and SHARED_MATRIX_ALIAS in state:
        alias = state.pop(SHARED_MATRIX_ALIAS)
        if not np.array_equal(state.setdefault(SHARED_MATRIX, alias), alias):
            raise UserError(
                f"{source}: {SHARED_MATRIX} and {SHARED_MATRIX_ALIAS} must hold the same numbers, they differ"
            )
    tensors = foreign_tensors(config, naming)
    check_params(state, config, source, {tensor.name: tensor.shape for tensor in tensors})
    flat = {
        tensor.ours: np.ascontiguousarray(state[tensor.name].transpose(np.argsort(tensor.axes)), np.float32)
        for tensor in tensors
    }
    return unflatten_dict(flat, sep="/")


def state_from_params(params: Params, config: SamConfig, naming: Naming) -> dict[str, np.ndarray]:
    """Params -> a PyTorch state dict as contiguous numpy arrays of the params' dtype.

    Raises:
        ValueError: the params do not fit the config.
    """
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    check_params(flat, config, "the params to convert")
    state = {
        tensor.name: np.ascontiguousarray(flat[tensor.ours].transpose(tensor.axes))
        for tensor in foreign_tensors(config, naming)
    }
    if naming == "huggingface":
        state[SHARED_MATRIX_ALIAS] = state[SHARED_MATRIX]
    return state


def without_text_prompt(params: Params, config: SamConfig) -> tuple[Params, SamConfig]:
    """The same model as others know it."""
    prompt_encoder = {name: value for name, value in params["prompt_encoder"].items() if name != TEXT_PROMPT}
    return params | {"prompt_encoder": prompt_encoder}, config.without_text()


def encoder_names(config: EncoderConfig, naming: Naming) -> TensorNames[Any]:
    """Returns how checkpoints of that kind name the tensors of an image encoder.

    Raises:
        UserError: there are none with this encoder.
    """
    encoder = encoder_of(config)
    names = {"official": encoder.official, "huggingface": encoder.huggingface}[naming]
    if names is None:
        raise UserError(
            f"the {config.kind} encoder has no {FORMATS[naming]} checkpoint format; keep the model as *.safetensors"
        )
    return names


def rename(name: str, rules: Rules) -> str:
    """Applies rules one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _mlp_rules(config: SamConfig) -> Rules:
    """Hugging Face splits the layers 0 .. depth - 1 of a small MLP into proj_in, layers 0 .. depth - 3, proj_out."""

    def rule(head: str, depth: int) -> tuple[str, Callable[[re.Match], str]]:
        def layer(match: re.Match) -> str:
            i = int(match[2])
            return match[1] + ("proj_in" if i == 0 else "proj_out" if i == depth - 1 else f"layers.{i - 1}")

        return rf"({head}\.)layers\.(\d+)", layer

    return rule("iou_prediction_head", config.iou_head_depth), rule(r"output_hypernetworks_mlps\.\d+", 3)


def _axes(ours: str, ndim: int) -> tuple[int, ...]:
    if not ours.endswith("/kernel"):
        return tuple(range(ndim))
    if ndim == 2:
        return 1, 0  # (in, out) -> (out, in)
    if "output_upscaling" in ours:
        return 2, 3, 0, 1  # transposed convolution: (h, w, in, out) -> (in, out, h, w)
    return 3, 2, 0, 1  # convolution: (h, w, in, out) -> (out, in, h, w)
