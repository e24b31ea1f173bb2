"""A model for inference: config and params, and the jitted functions that all inference code shares."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from sam_jax.config import FLAT_ENCODER_FIELDS, NO_OPTIONS, EverythingOptions, SamConfig, ViTConfig
from sam_jax.errors import WrongType
from sam_jax.modeling import decode_masks, encode_image, encode_prompts, normalize_images
from sam_jax.types import Params, Prediction, Prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Sam:
    """A Segment Anything model, from `sam_jax.load_model` or from a config and params.

    Both methods are compiled for the shapes, the config and the dtype, so models of the same config share compiled code
    whatever their params.

    Args:
        config: architecture of the model.
        params: nested dict of arrays, as `sam_jax.modeling.init_params` returns it; moved to the default device.
        dtype: dtype of the computation; that of the params does not change.
        everything: what suits the model in everything mode, as its checkpoint says.
    """

    config: SamConfig
    params: Params = dataclasses.field(repr=False)
    dtype: Any = jnp.float32
    everything: EverythingOptions = NO_OPTIONS

    def __post_init__(self) -> None:
        # Params are moved to the device once, and not with every call.
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))

    def encode_image(
        self, images: UInt8[Array | np.ndarray, "B S S 3"], sizes: Int[Array | np.ndarray, "B 2"]
    ) -> Float[Array, "B h w E"]:
        """Returns the embeddings of images in the input frame.

        Args:
            images: RGB, 0-255, resized and padded by `sam_jax.ops.transforms.fit_image`.
            sizes: size (h, w) of each image without padding, in pixels of the input frame.
        """
        return _encode(self.params, images, sizes, config=self.config, dtype=self.dtype)

    def decode(
        self, embeddings: Float[Array, "B h w E"], prompts: Prompts, *, multimask_output: bool | None = None
    ) -> Prediction:
        """Predicts the masks of Q prompts on each of B images.

        Args:
            embeddings: result of `encode_image`.
            prompts: result of `sam_jax.prompting.prompts.pack_prompts`.
            multimask_output: True returns the three masks for ambiguous prompts, False the single mask, and None all
                four with the single mask first. The model computes four in any case, so None avoids compiling twice.
        """
        return _decode(
            self.params, embeddings, prompts, config=self.config, dtype=self.dtype, multimask_output=multimask_output
        )


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _encode(params: Params, images: Array, sizes: Array, *, config: SamConfig, dtype: Any) -> Array:
    return encode_image(params, normalize_images(images, sizes, config.encoder), config, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "multimask_output"))
def _decode(
    params: Params,
    embeddings: Array,
    prompts: Prompts,
    *,
    config: SamConfig,
    dtype: Any,
    multimask_output: bool | None,
) -> Prediction:
    encoded = encode_prompts(params, prompts, config, dtype=dtype)
    return decode_masks(params, embeddings, encoded, config, multimask_output=multimask_output, dtype=dtype)


def check_model(model: object) -> None:
    """Raises a WrongType if this is no model, which says how to get one."""
    if not isinstance(model, Sam):
        named = f" {str(model)!r}" if isinstance(model, str | PathLike) else ""
        raise WrongType(
            f"expected a model, got {type(model).__name__}{named}; load_model(NAME_OR_PATH) returns one, such as "
            "load_model('small')"
        )


def model_identity(model: Sam) -> str:
    """Returns a digest of a model's config, params and dtype, which changes when it is trained further."""
    return params_digest(f"{_settings(model.config)} {np.dtype(model.dtype)}", model.params)


def _settings(config: SamConfig) -> str:
    """Returns the config's JSON. For a ViT it is in the earlier, flat format, whose digests are in records on disk."""
    if not isinstance(config.encoder, ViTConfig):
        return config.to_json()
    fields = json.loads(config.to_json())
    own, *colours = fields.pop("encoder"), "pixel_mean", "pixel_std"
    encoder = {old: own[new] for old, new in FLAT_ENCODER_FIELDS.items() if new not in colours}
    text = {name: fields.pop(name) for name in ("text_dim", "text_encoder") if name in fields}
    return json.dumps({"name": fields.pop("name")} | encoder | fields | {name: own[name] for name in colours} | text)


def params_digest(settings: str, params: Params) -> str:
    """Returns a digest of settings and params, 16 hexadecimal digits."""
    digest = hashlib.sha256(settings.encode())
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
