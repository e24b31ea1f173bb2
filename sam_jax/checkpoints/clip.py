"""Defines the family of CLIP: OpenAI's archives and state dicts, Hugging Face's `CLIPModel`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sam_jax.checkpoints.family import Family, Naming, Rules, Shape, rename
from sam_jax.checkpoints.processors import BICUBIC, check_processor, read_colours, square
from sam_jax.checkpoints.published import Published, State, read_json_object, read_processor, read_section
from sam_jax.clip.config import CLIP_B32, CLIP_SIZES, ClipConfig
from sam_jax.clip.network import init_clip_params
from sam_jax.errors import UserError

HEAD_DIM = 64  # of every tower that OpenAI released; shapes do not tell

RULES: Rules = (
    (r"^text/", ""),
    (r"resblocks_(\d+)", r"resblocks/\1"),
    (r"in_proj/kernel$", "in_proj_weight"),
    (r"in_proj/bias$", "in_proj_bias"),
    (r"token_embedding$", "token_embedding/weight"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)
# Hugging Face's names -> OpenAI's.
FROM_HUGGINGFACE: Rules = (
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.encoder\.layers", "visual.transformer.resblocks"),
    (r"^visual_projection\.weight", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.encoder\.layers", "transformer.resblocks"),
    (r"^text_projection\.weight", "text_projection"),
    (r"\.self_attn\.out_proj", ".attn.out_proj"),
    (r"\.layer_norm([12])", r".ln_\1"),
    (r"\.mlp\.fc1", ".mlp.c_fc"),
    (r"\.mlp\.fc2", ".mlp.c_proj"),
)
HUGGINGFACE_LANDMARK = "vision_model."


def from_huggingface_names(state: State) -> State:
    """Renames a `CLIPModel`'s tensors as OpenAI's; joins queries, keys and values, turns projections."""
    if not any(name.startswith(HUGGINGFACE_LANDMARK) for name in state):
        return state
    renamed = {rename(name, FROM_HUGGINGFACE): value for name, value in state.items()}
    for name in ("visual.proj", "text_projection"):
        if name in renamed:
            renamed[name] = renamed[name].T
    for name in [name for name in renamed if ".self_attn.q_proj." in name]:
        others = [name.replace("q_proj", f"{part}_proj") for part in "kv"]
        if all(other in renamed for other in others):
            joined = name.replace("self_attn.q_proj.", "attn.in_proj_")
            renamed[joined] = np.concatenate([renamed.pop(part) for part in (name, *others)])
    return renamed


def config_from_huggingface(
    content: Mapping[str, Any],
    processor: Mapping[str, Any] | None = None,
    source: str = "config.json",
    processor_source: str = "preprocessor_config.json",
) -> ClipConfig:
    """Reads a `config.json` of `CLIPModel`; what it leaves out is as in ViT-B/32.

    Args:
        processor: content of `preprocessor_config.json`, or of "image_processor" in `processor_config.json`.
        source, processor_source: where the two are from, for the error.

    Raises:
        UserError: this is another model, or has options that ours does not have.
    """
    if content.get("model_type") != "clip":
        raise UserError(
            f"{source}: expected the config of a CLIPModel (model_type 'clip'), got {content.get('model_type')!r}"
        )
    vision, text = (read_section(content, key, source) for key in ("vision_config", "text_config"))
    base = CLIP_B32
    config = ClipConfig(
        name=str(content.get("_name_or_path") or "custom"),
        image_size=vision.get("image_size", base.image_size),
        patch_size=vision.get("patch_size", base.patch_size),
        vision_dim=vision.get("hidden_size", base.vision_dim),
        vision_depth=vision.get("num_hidden_layers", base.vision_depth),
        vision_heads=vision.get("num_attention_heads", base.vision_heads),
        text_dim=text.get("hidden_size", base.text_dim),
        text_depth=text.get("num_hidden_layers", base.text_depth),
        text_heads=text.get("num_attention_heads", base.text_heads),
        text_length=text.get("max_position_embeddings", base.text_length),
        vocabulary=text.get("vocab_size", base.vocabulary),
        embedding_dim=content.get("projection_dim", base.embedding_dim),
    )
    if processor is not None:
        mean, std = read_colours(processor, processor_source, config.pixel_mean, config.pixel_std)
        size = {"shortest_edge": config.image_size}
        check_processor(processor, processor_source, size=size, crop=square(config.image_size), resample=BICUBIC)
        config = dataclasses.replace(config, pixel_mean=mean, pixel_std=std)
    problems = [
        f"{section}.{key} must be {value!r}, got {given[key]!r}"
        for section, given, width in (
            ("vision_config", vision, config.vision_dim),
            ("text_config", text, config.text_dim),
        )
        for key, value in (("hidden_act", "quick_gelu"), ("intermediate_size", 4 * width), ("layer_norm_eps", 1e-5))
        if given.get(key, value) != value
    ]
    if problems:
        raise UserError(
            f"{source}: a CLIPModel with options that this package does not have:\n  " + "\n  ".join(problems)
        )
    return CLIP.known(config)


def guess_config(shapes: Mapping[str, Shape], source: str) -> ClipConfig:
    """Returns the config of a checkpoint under OpenAI's names, for heads 64 wide as in all of OpenAI's.

    Raises:
        UserError: these are not the shapes of a CLIP with a ViT.
    """

    def depth(prefix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(".ln_1.weight") for name in shapes)

    try:
        vision_dim, _, _, patch = shapes["visual.conv1.weight"]
        positions, _ = shapes["visual.positional_embedding"]
        length, text_dim = shapes["positional_embedding"]
        config = ClipConfig(
            name="custom",
            image_size=patch * round((positions - 1) ** 0.5),
            patch_size=patch,
            vision_dim=vision_dim,
            vision_depth=depth("visual.transformer."),
            vision_heads=vision_dim // HEAD_DIM,
            text_dim=text_dim,
            text_depth=depth("transformer."),
            text_heads=text_dim // HEAD_DIM,
            text_length=length,
            vocabulary=shapes["token_embedding.weight"][0],
            embedding_dim=shapes["text_projection"][1],
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"expected a CLIP with a ViT image tower, {source} has {len(shapes)} other tensors: {sorted(shapes)[:8]} "
            f"({error}); CLIPs with a ResNet are not known here"
        ) from error
    return CLIP.known(config)


def _own_config(published: Published) -> ClipConfig | None:
    path = published.huggingface_config
    if not path.is_file() or not any(name.startswith(HUGGINGFACE_LANDMARK) for name in published.state):
        return None
    processor, processor_source = read_processor(path.parent)
    return config_from_huggingface(read_json_object(path), processor, str(path), processor_source)


CLIP = Family(
    label="a CLIP checkpoint",
    key="sam_jax_clip_config",
    config=ClipConfig,
    init=init_clip_params,
    sizes=CLIP_SIZES,
    namings=(
        Naming(
            name="openai",
            landmarks=("visual.", HUGGINGFACE_LANDMARK),
            rename=lambda ours, _: rename(ours, RULES),
            guess=guess_config,
            own_config=_own_config,
            # Numbers in OpenAI's archives; 0, 1, 2, ... in old files of Hugging Face.
            unused=r"^(input_resolution|context_length|vocab_size)$|\.position_ids$",
            translate=from_huggingface_names,
        ),
    ),
)
