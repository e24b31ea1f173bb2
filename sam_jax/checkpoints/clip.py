"""CLIP checkpoints of OpenAI and of Hugging Face -> our params.

What is read: OpenAI's `.pt` (TorchScript archives, as data), a state dict under OpenAI's names in a `.pt` or
safetensors file, a Hugging Face `CLIPModel` folder (or its safetensors file beside its config.json), and ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoints.files import (
    State,
    agree_on_config,
    is_pytorch,
    read_huggingface_state,
    read_json,
    read_safetensors_metadata,
    read_state,
)
from sam_jax.checkpoints.format import CLIP_CONFIG_KEY, CONFIG_KEY, check_params, expected_shapes, load_clip_checkpoint
from sam_jax.checkpoints.torchscript import is_torchscript, read_torchscript
from sam_jax.clip.config import CLIP_B32, CLIP_SIZES, ClipConfig
from sam_jax.errors import MissingFile, UserError
from sam_jax.types import Params

HEAD_DIM = 64  # of every tower that OpenAI released; shapes do not tell
NOT_PARAMS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives

# Hugging Face's names -> OpenAI's, one after the other.
FROM_HUGGINGFACE = (
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


def load_any_clip(path: str | Path, config: ClipConfig | None = None) -> tuple[Params, ClipConfig]:
    """Reads a CLIP checkpoint of a known kind; the content tells which.

    Args:
        path: file or folder; the kinds are listed above.
        config: of a file that does not know its own, if its heads are not 64 wide; None: from the shapes.

    Returns:
        float32 numpy params and their config, which is one of `CLIP_SIZES` where the shapes are.

    Raises:
        FileNotFoundError: nothing there.
        ImportError: a PyTorch state dict, and no PyTorch. TorchScript archives need none.
        ValueError: not such a checkpoint; tensors missing, extra or misshapen (all are named); a config that is not
            the file's.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f"expected a CLIP checkpoint at {path}, found nothing")
    if path.is_dir():
        state = read_huggingface_state(path, "CLIPModel")
    elif is_torchscript(path):
        state = read_torchscript(path)
    elif not is_pytorch(path) and read_safetensors_metadata(path).keys() & {CLIP_CONFIG_KEY, CONFIG_KEY}:
        params, own = load_clip_checkpoint(path)
        return params, agree_on_config(config, own, path)
    else:
        state = read_state(path)
    if any(name.startswith("vision_model.") for name in state):
        folder = path if path.is_dir() else path.parent
        if (folder / "config.json").is_file():
            own = config_from_huggingface(read_json(folder / "config.json"), str(folder / "config.json"))
            config = agree_on_config(config, own, path)
        state = state_from_huggingface(state)
    state = {name: value for name, value in state.items() if name not in NOT_PARAMS}
    if config is None:
        config = config_from_shapes({name: value.shape for name, value in state.items()}, str(path))
    return clip_params_from_state(state, config, str(path)), config


def clip_params_from_state(
    state: Mapping[str, np.ndarray], config: ClipConfig, source: str = "the state dict"
) -> Params:
    """A state dict under OpenAI's names -> params, float32.

    Raises:
        ValueError: names every missing, extra and misshapen tensor at once.
    """
    foreign = {ours: _official(ours, len(shape)) for ours, shape in expected_shapes(config).items()}
    shapes = {
        name: tuple(expected_shapes(config)[ours][axis] for axis in axes) for ours, (name, axes) in foreign.items()
    }
    check_params(state, config, source, shapes)
    flat = {
        ours: np.array(state[name].transpose(np.argsort(axes)), np.float32, order="C")
        for ours, (name, axes) in foreign.items()
    }
    return unflatten_dict(flat, sep="/")


def clip_state_from_params(params: Params, config: ClipConfig) -> dict[str, np.ndarray]:
    """Params -> a state dict under OpenAI's names.

    Raises:
        ValueError: the params do not fit the config.
    """
    flat = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    check_params(flat, config, "the params to convert")
    names = {ours: _official(ours, value.ndim) for ours, value in flat.items()}
    return {name: np.array(flat[ours].transpose(axes), order="C") for ours, (name, axes) in names.items()}


def _official(ours: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """OpenAI's name of one of our tensors, and theirs = ours.transpose(axes)."""
    name = re.sub(r"resblocks_(\d+)", r"resblocks/\1", ours.removeprefix("text/"))
    name = re.sub(r"in_proj/(kernel|bias)$", lambda m: "in_proj_" + m[1].replace("kernel", "weight"), name)
    name = re.sub(r"(token_embedding)$|/(kernel|scale)$", lambda m: f"{m[1] or ''}/weight", name)
    axes = tuple(range(ndim))
    if ours.endswith("/kernel"):
        axes = (1, 0) if ndim == 2 else (3, 2, 0, 1)
    return name.replace("/", "."), axes


def state_from_huggingface(state: Mapping[str, np.ndarray]) -> State:
    """Renames a `CLIPModel`'s tensors as OpenAI's; joins queries, keys and values, turns projections."""
    renamed: State = {}
    for name, value in state.items():
        if name.endswith(".position_ids"):  # 0, 1, 2, ...: old files hold it
            continue
        for pattern, replacement in FROM_HUGGINGFACE:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.T if name in ("visual.proj", "text_projection") else value
    for name in [name for name in renamed if ".self_attn.q_proj." in name]:
        others = [name.replace("q_proj", f"{part}_proj") for part in "kv"]
        if all(other in renamed for other in others):
            joined = name.replace("self_attn.q_proj.", "attn.in_proj_")
            renamed[joined] = np.concatenate([renamed.pop(part) for part in (name, *others)])
    return renamed


def config_from_huggingface(content: Mapping[str, Any], source: str = "config.json") -> ClipConfig:
    """Reads a `config.json` of `CLIPModel`; what it leaves out is as in ViT-B/32.

    Raises:
        ValueError: another model, or options that ours does not have.
    """
    if content.get("model_type") != "clip":
        raise UserError(
            f"{source}: expected the config of a CLIPModel (model_type 'clip'), got {content.get('model_type')!r}"
        )
    vision, text = content.get("vision_config") or {}, content.get("text_config") or {}
    base = CLIP_B32
    config = _named(
        ClipConfig(
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
    )
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
    return config


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> ClipConfig:
    """The config of a checkpoint under OpenAI's names, for heads 64 wide as in all of OpenAI's.

    Raises:
        ValueError: not the shapes of a CLIP with a ViT.
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
    return _named(config)


def _named(config: ClipConfig) -> ClipConfig:
    return next((size for size in CLIP_SIZES.values() if dataclasses.replace(config, name=size.name) == size), config)
