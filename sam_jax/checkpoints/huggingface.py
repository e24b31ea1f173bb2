"""Converts our config to the JSON files of a Hugging Face `SamModel` folder, and back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from sam_jax.checkpoints.processors import BILINEAR, check_processor, read_colours, square
from sam_jax.checkpoints.published import read_section
from sam_jax.config import VIT_B, EncoderConfig, SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling.encoders import encoder_of, known_sizes
from sam_jax.modeling.encoders.base import HuggingFaceNames

SECTIONS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")


def config_to_huggingface(config: SamConfig) -> dict[str, Any]:
    """Returns the content of `config.json`.

    Raises:
        UserError: `SamModel` cannot express this config.
    """
    if config.decoder_attention_downsample != 2:
        raise UserError(
            "Hugging Face's SamModel fixes decoder_attention_downsample at 2 in its two-way blocks; "
            f"model {config.name!r} has {config.decoder_attention_downsample}"
        )
    if config.iou_head_depth < 2:
        raise UserError(
            "Hugging Face's SamModel has an IoU head of at least 2 layers; "
            f"model {config.name!r} has iou_head_depth {config.iou_head_depth}"
        )
    return {
        "_name_or_path": config.name,
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            **_encoder_format(config.encoder).to_section(config.encoder),
            "output_channels": config.prompt_dim,
            "num_pos_feats": config.prompt_dim // 2,
        },
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder",
            "image_size": config.image_size,
            "patch_size": config.encoder.stride,
            "hidden_size": config.prompt_dim,
            "mask_input_channels": config.mask_channels,
            "num_point_embeddings": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": config.prompt_dim,
            "hidden_act": "relu",
            "mlp_dim": config.decoder_mlp_dim,
            "num_hidden_layers": config.decoder_depth,
            "num_attention_heads": config.decoder_heads,
            "attention_downsample_rate": config.decoder_attention_downsample,
            "num_multimask_outputs": config.num_multimask_outputs,
            "iou_head_depth": config.iou_head_depth,
            "iou_head_hidden_dim": config.iou_head_hidden_dim,
            # As in the official code. Hugging Face's own default, 1e-6, gives slightly other masks.
            "layer_norm_eps": 1e-5,
        },
    }


def preprocessor_to_huggingface(config: SamConfig) -> dict[str, Any]:
    """Returns the content of `preprocessor_config.json`, which `SamImageProcessor` reads."""
    low_res = config.low_res_size
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [value / 255 for value in config.encoder.pixel_mean],
        "image_std": [value / 255 for value in config.encoder.pixel_std],
        "mask_pad_size": square(low_res),
        "mask_size": {"longest_edge": low_res},
        "pad_size": square(config.image_size),
        "resample": BILINEAR,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": config.image_size},
    }


def config_from_huggingface(
    content: Mapping[str, Any],
    processor: Mapping[str, Any] | None = None,
    source: str = "config.json",
    processor_source: str = "preprocessor_config.json",
) -> SamConfig:
    """Reads a `config.json` of `SamModel`, and the colour normalisation from what is said of its `SamImageProcessor`.

    The name is that of the published size with the same numbers, else the one that `config.json` gives, else "custom".

    Args:
        processor: content of `preprocessor_config.json`, or of "image_processor" in `processor_config.json`.
        source, processor_source: where the two are from, for the error.

    Raises:
        UserError: this is another model, or a SamModel or a processor with options that ours does not have; all are
            named.
    """
    if content.get("model_type") != "sam":
        raise UserError(
            f"{source}: expected the config of a SamModel (model_type 'sam'), got {content.get('model_type')!r}"
        )
    # Old files leave out what equals the defaults, which are those of ViT-B.
    filled = copy.deepcopy({section: config_to_huggingface(VIT_B)[section] for section in SECTIONS})
    vision_file = read_section(content, "vision_config", source)
    for section in SECTIONS:
        filled[section].update(read_section(content, section, source))
    vision, prompts, decoder = (filled[section] for section in SECTIONS)

    try:
        if vision_file.get("mlp_dim") is None:
            vision["mlp_dim"] = int(vision["hidden_size"] * vision_file.get("mlp_ratio", 4.0))
        config = SamConfig(
            name=str(content.get("_name_or_path") or "custom"),
            encoder=_encoder_format(VIT_B.encoder).from_section(vision),
            prompt_dim=vision["output_channels"],
            mask_channels=prompts["mask_input_channels"],
            decoder_depth=decoder["num_hidden_layers"],
            decoder_heads=decoder["num_attention_heads"],
            decoder_mlp_dim=decoder["mlp_dim"],
            decoder_attention_downsample=decoder["attention_downsample_rate"],
            num_multimask_outputs=decoder["num_multimask_outputs"],
            iou_head_depth=decoder["iou_head_depth"],
            iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
        )
        expected = config_to_huggingface(config)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{source}: not a SamModel that this package can hold: {error}") from error

    # Everything that is fixed in our model, or said twice in theirs, must be as we would write it.
    problems = [
        f"{section}.{key} must be {value!r}, got {str(filled[section][key])[:80]}"
        for section in SECTIONS
        for key, value in expected[section].items()
        # The norms' epsilon does not touch the tensors: converted official checkpoints come with 1e-6 here.
        if filled[section][key] != value and (section, key) != ("mask_decoder_config", "layer_norm_eps")
    ]
    if problems:
        raise UserError(
            f"{source}: a SamModel with options that this package does not have:\n  " + "\n  ".join(problems)
        )

    if processor is not None:
        size = {"longest_edge": config.image_size}
        mean, std = read_colours(processor, processor_source, config.encoder.pixel_mean, config.encoder.pixel_std)
        check_processor(processor, processor_source, size=size, pad=square(config.image_size), resample=BILINEAR)
        config = dataclasses.replace(
            config, encoder=dataclasses.replace(config.encoder, pixel_mean=mean, pixel_std=std)
        )
    sizes = known_sizes().values()
    return next((size for size in sizes if dataclasses.replace(config, name=size.name) == size), config)


def _encoder_format(config: EncoderConfig) -> HuggingFaceNames[Any]:
    names = encoder_of(config).names("huggingface")
    assert isinstance(names, HuggingFaceNames)
    return names
