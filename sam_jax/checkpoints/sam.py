"""Defines the family of Segment Anything: official checkpoints and Hugging Face's `SamModel`.

Our names are the official ones with `/` for `.` and digits joined by `_`; Hugging Face renamed some.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.checkpoints.family import ENCODER, PYTORCH_RULES, Family, Naming, Rules, Shape, rename
from sam_jax.checkpoints.huggingface import config_from_huggingface, config_to_huggingface, preprocessor_to_huggingface
from sam_jax.checkpoints.published import (
    Published,
    config_beside,
    read_json_object,
    read_processor,
    write_huggingface_folder,
    write_pytorch,
)
from sam_jax.config import VIT_B, SamConfig
from sam_jax.errors import UserError
from sam_jax.files import read_text
from sam_jax.modeling import init_params
from sam_jax.modeling.encoders import ENCODERS, encoder_of, known_sizes
from sam_jax.modeling.encoders.base import Encoder, OfficialNames
from sam_jax.types import Params

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
# Hugging Face holds the Fourier matrix under two names. Its files have both, or one alone.
SHARED_MATRIX = "shared_image_embedding.positional_embedding"
SHARED_MATRIX_ALIAS = "prompt_encoder.shared_embedding.positional_embedding"
TEXT_PROMPT = "text_projection"  # in prompt_encoder; neither the official code nor Hugging Face has it
PREFIXES = {"official": "image_encoder.", "huggingface": "vision_encoder."}  # of the encoder's tensors


def _rename(ours: str, config: SamConfig, naming: str) -> str:
    """Returns the name of a tensor `path/to/param` of ours; the encoder's own names follow its own rules."""
    if ours.startswith(ENCODER):
        name = ENCODER + rename(ours.removeprefix(ENCODER), encoder_of(config.encoder).names(naming).rules)
    else:
        name = rename(ours, OFFICIAL_RULES)
    name = rename(name, PYTORCH_RULES)
    return rename(name, (*HUGGINGFACE_RULES, *_mlp_rules(config))) if naming == "huggingface" else name


def _mlp_rules(config: SamConfig) -> Rules:
    """Returns the rules for small MLPs: Hugging Face has proj_in, layers 0 .. depth - 3 and proj_out of them."""

    def rule(head: str, depth: int) -> tuple[str, Callable[[re.Match], str]]:
        def layer(match: re.Match) -> str:
            i = int(match[2])
            return match[1] + ("proj_in" if i == 0 else "proj_out" if i == depth - 1 else f"layers.{i - 1}")

        return rf"({head}\.)layers\.(\d+)", layer

    return rule("iou_prediction_head", config.iou_head_depth), rule(r"output_hypernetworks_mlps\.\d+", 3)


def guess_config(shapes: Mapping[str, Shape], source: str, naming: str) -> SamConfig:
    """Returns one of the known sizes if its shapes are these; else, of official names, a "custom" made from them.

    Shapes tell all but the decoder's heads and the colour normalisation. The official code fixes both, for a decoder
    256 wide; so a narrower or wider one, unless it is of a known size, cannot be guessed. Hugging Face's files have
    their config beside them.

    Args:
        shapes: shapes of the tensors by name.
        source: where they are from, for the error.
        naming: "official" or "huggingface".

    Returns:
        a config that fits the shapes; or, where none does, the known size with the same landmark, so that the caller
        can say what is wrong.

    Raises:
        UserError: the shapes do not tell.
    """
    encoders = _encoders(naming)
    landmark = next((name for name in encoders if name in shapes), None)
    if landmark is None:
        raise UserError(f"expected a tensor {' or '.join(encoders)} in {source}, it has others: {sorted(shapes)[:8]}")
    encoder = encoders[landmark]
    names = encoder.names(naming)
    alike = [c for c in encoder.sizes.values() if names.landmark_shape(c.encoder) == shapes[landmark]]
    for config in alike:
        if _tensor_shapes(config, naming) == shapes:
            return config
    custom = _from_official_shapes(shapes, encoder.official) if naming == "official" else None
    if custom is not None and _tensor_shapes(custom, naming) == shapes:
        if custom.prompt_dim == VIT_B.prompt_dim:
            return custom
        raise UserError(
            f"{source} has a decoder of width {custom.prompt_dim}; how many heads that has, only widths of known "
            f"models tell ({', '.join(encoder.sizes)}): give the config"
        )
    if alike:
        return alike[0]
    raise UserError(
        f"{source} has {landmark} of shape {shapes[landmark]}, which no known size has ({', '.join(encoder.sizes)}), "
        "and its other tensors do not tell a config: give it"
    )


def _encoders(naming: str) -> dict[str, Encoder[Any]]:
    """Returns the tensors by which checkpoints of a naming are known, and the encoders that they tell."""
    named = [encoder for encoder in ENCODERS if (encoder.official if naming == "official" else encoder.huggingface)]
    return {PREFIXES[naming] + encoder.names(naming).landmark: encoder for encoder in named}


def _tensor_shapes(config: SamConfig, naming: str) -> dict[str, Shape]:
    """Returns name -> shape, each tensor under one name."""
    return {tensor.name: tensor.shape for tensor in SAM.foreign_tensors(config, SAM.naming(naming))}


def _from_official_shapes(shapes: Mapping[str, Shape], names: OfficialNames[Any] | None) -> SamConfig | None:
    """Returns the config that official shapes tell, as far as they are looked at here; None: they tell none."""
    assert names is not None

    def layers(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in shapes)

    prefix, decoder = PREFIXES["official"], "mask_decoder."
    layer, iou_head = f"{decoder}transformer.layers.", f"{decoder}iou_prediction_head.layers."
    try:
        prompt_dim = shapes[f"{prefix}neck.0.weight"][0]
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        return SamConfig(
            name="custom",
            encoder=names.guess(own),
            prompt_dim=prompt_dim,
            mask_channels=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
            decoder_depth=layers(layer, ".norm1.weight"),
            decoder_mlp_dim=shapes[f"{layer}0.mlp.lin1.weight"][0],
            decoder_heads=VIT_B.decoder_heads if prompt_dim == VIT_B.prompt_dim else 1,
            decoder_attention_downsample=prompt_dim // shapes[f"{layer}0.cross_attn_token_to_image.q_proj.weight"][0],
            num_multimask_outputs=shapes[f"{decoder}mask_tokens.weight"][0] - 1,
            iou_head_depth=layers(iou_head, ".weight"),
            iou_head_hidden_dim=shapes[f"{iou_head}0.weight"][0],
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def without_text_prompt(params: Params, config: SamConfig) -> tuple[Params, SamConfig]:
    """Returns the same model without its text prompt, as other formats know it."""
    prompt_encoder = {name: value for name, value in params["prompt_encoder"].items() if name != TEXT_PROMPT}
    return params | {"prompt_encoder": prompt_encoder}, config.without_text()


def _read_own_config(published: Published) -> SamConfig | None:
    """Returns the config that our `.pth` files hold, or that earlier versions wrote beside them."""
    path, beside = published.path, config_beside(published.path)
    try:
        if published.own_config is not None:
            return SamConfig.from_fields(published.own_config)
        path = beside
        return SamConfig.from_json(read_text(path)) if path.is_file() else None
    except ValueError as error:  # not UTF-8, or a UserError
        raise UserError(f"{path}: {error}") from error


def _read_huggingface_config(published: Published) -> SamConfig | None:
    path = published.huggingface_config
    if not path.is_file():
        return None
    processor, processor_source = read_processor(path.parent)
    return config_from_huggingface(read_json_object(path), processor, str(path), processor_source)


def _published_state(params: Params, config: SamConfig, naming: str) -> tuple[Mapping[str, np.ndarray], SamConfig]:
    """Returns the tensors and the config of a model in a format that others read, which lacks the text prompt.

    Raises:
        UserError: the format cannot say what the model does.
    """
    params, config = without_text_prompt(params, config)
    state = SAM.state_from_params(params, config, SAM.naming(naming))
    if config.iou_sees_mask:
        raise UserError("no other format has iou_sees_mask, the IoU that depends on the mask; keep it as *.safetensors")
    return state, config


def _write_pytorch(path: Path, params: Params, config: SamConfig) -> None:
    state, config = _published_state(params, config, "official")
    write_pytorch(path, state, config.to_json())


def _write_huggingface(folder: Path, params: Params, config: SamConfig) -> None:
    state, config = _published_state(params, config, "huggingface")
    contents = {
        "config.json": config_to_huggingface(config),
        "preprocessor_config.json": preprocessor_to_huggingface(config),
    }
    write_huggingface_folder(folder, state, contents)


def _naming(naming: str, **differences: Any) -> Naming[SamConfig]:
    return Naming(
        name=naming,
        landmarks=tuple(_encoders(naming)),
        rename=functools.partial(_rename, naming=naming),
        guess=functools.partial(guess_config, naming=naming),
        transposed="output_upscaling",
        unused=r"\.num_batches_tracked$",  # of batch norms: a count, without use once they are trained
        **differences,
    )


SAM = Family(
    label="a checkpoint of Segment Anything",
    key="sam_jax_config",
    config=SamConfig,
    init=init_params,
    sizes=known_sizes(),
    namings=(
        _naming("official", own_config=_read_own_config),
        _naming("huggingface", own_config=_read_huggingface_config, aliases=((SHARED_MATRIX_ALIAS, SHARED_MATRIX),)),
    ),
    write_pytorch=_write_pytorch,
    write_huggingface=_write_huggingface,
)
