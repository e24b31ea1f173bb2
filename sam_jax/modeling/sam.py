"""The whole model as pure functions: params and arrays in, arrays out.

All of them run unchanged under `jax.jit` (with `config` and the keyword options static), `jax.vmap`, `jax.pmap`, and
`jit` over a mesh with sharded images or params.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from sam_jax.config import EncoderConfig, SamConfig
from sam_jax.modeling.common import apply
from sam_jax.modeling.image_encoder import EMBEDDING, encode_maps, init_image_encoder
from sam_jax.modeling.mask_decoder import MaskDecoder
from sam_jax.modeling.prompt_encoder import PromptEncoder
from sam_jax.modeling.transformer import SharedImage
from sam_jax.modeling.transformer import share_image as project_image
from sam_jax.types import PAD, AnyArray, Params, Prediction, Prompts

# On a CPU the decoder takes its prompts in chunks, so that the image tokens of a chunk (this many numbers, 16 MiB in
# float32) and what is made of them stay in the cache. An accelerator takes them all at once.
CPU_DECODER_ELEMENTS = 2**22


class EncodedPrompts(NamedTuple):
    """What the decoder takes of B x Q prompts."""

    sparse: Float[Array, "B Q N D"]
    sparse_mask: Bool[AnyArray, "B Q N"]  # False where there is no token
    dense: Float[Array, "#B #Q #h #w D"]  # (1, 1, 1, 1, D) when no prompt carries a mask
    image_positions: Float[Array, "h w D"]


@functools.partial(jax.jit, static_argnums=0)  # else flax runs the whole model, step by step
def init_params(config: SamConfig, key: Key[Array, ""]) -> Params:
    """Returns random float32 params, initialised as in PyTorch. `jax.eval_shape` of this function gives the shapes."""
    encoder_key, prompt_key, decoder_key = jax.random.split(key, 3)
    grid, D = config.grid_size, config.prompt_dim
    prompts = Prompts(jnp.zeros((1, 1, 1, 2)), jnp.full((1, 1, 1), PAD))
    sparse, mask = jnp.zeros((1, 1, 1, D)), jnp.ones((1, 1, 1), bool)
    image = jnp.zeros((1, grid, grid, config.embedding_dim))
    positions = image[0, ..., :D]
    return {
        "image_encoder": init_image_encoder(config, encoder_key),
        "prompt_encoder": PromptEncoder(config).init(prompt_key, prompts)["params"],
        "mask_decoder": MaskDecoder(config).init(
            decoder_key, image, positions, sparse, mask, jnp.zeros((1, 1, 1, 1, D))
        )["params"],
    }


def normalize_images(
    images: UInt8[AnyArray, "B S S 3"], sizes: Int[AnyArray, "B 2"], encoder: EncoderConfig
) -> Float[Array, "B S S 3"]:
    """Normalises images in the input frame, as the encoder takes them.

    Args:
        images: RGB, 0-255, resized and padded on the right and bottom with anything.
        sizes: (h, w) of the part that is image. The rest becomes 0 after the normalisation, as in the official code.
        encoder: the config whose `pixel_mean` and `pixel_std` the images are normalised with.
    """
    pixels = (images.astype(jnp.float32) - jnp.array(encoder.pixel_mean)) / jnp.array(encoder.pixel_std)
    rows, cols = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    valid = (rows[None, :, None] < sizes[:, 0, None, None]) & (cols[None, None, :] < sizes[:, 1, None, None])
    return jnp.where(valid[..., None], pixels, 0.0)


def encode_image(
    params: Params,
    images: Float[Array, "B S S 3"],
    config: SamConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    drop_path: float = 0.0,
    remat: bool = False,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B h w E"]:
    """Encodes normalised images and returns their embeddings, in `dtype`. The arguments are those of `encode_maps`.

    Reference: section 3 and A of the paper; Li et al. 2022 (ViTDet).
    """
    options: dict[str, Any] = {"dtype": dtype, "drop_path": drop_path, "remat": remat, "key": key}
    return encode_maps(params, images, config, **options)[EMBEDDING]


def encode_prompts(
    params: Params, prompts: Prompts, config: SamConfig, *, dtype: DTypeLike = jnp.float32
) -> EncodedPrompts:
    """Encodes points, boxes and masks in the input frame, and embeddings of texts.

    Raises:
        ValueError: masks, or embeddings of texts, of another size than the model's.
    """
    if prompts.mask_logits is not None and prompts.mask_logits.shape[-2:] != (config.low_res_size,) * 2:
        raise ValueError(
            f"mask prompts of model {config.name!r} are {config.low_res_size} x {config.low_res_size} logits, "
            f"got {prompts.mask_logits.shape[-2:]}"
        )
    if prompts.text_embeddings is not None:
        if not config.text_dim:
            raise ValueError(
                f"model {config.name!r} has no text prompt; train one (configs/text.py) or give points and boxes"
            )
        if prompts.text_embeddings.shape[-1] != config.text_dim:
            raise ValueError(
                f"text prompts of model {config.name!r} are embeddings of CLIP {config.text_encoder!r}, "
                f"{config.text_dim} wide, got {prompts.text_embeddings.shape[-1]}"
            )
    return EncodedPrompts(*apply(PromptEncoder(config, dtype), params["prompt_encoder"], prompts))


def share_image(
    params: Params, embeddings: Float[AnyArray, "B h w E"], config: SamConfig, *, dtype: DTypeLike = jnp.float32
) -> SharedImage:
    """Computes what the decoder needs of images for any prompt, for many calls of `decode_masks` on the same images."""
    nothing = Prompts(jnp.zeros((1, 1, 1, 2)), jnp.full((1, 1, 1), PAD))
    encoded = encode_prompts(params, nothing, config, dtype=dtype)
    image = embeddings.astype(dtype)[:, None, ..., : config.prompt_dim] + encoded.dense
    image, positions = (x.reshape(*x.shape[:-3], -1, config.prompt_dim) for x in (image, encoded.image_positions))
    return project_image(params["mask_decoder"]["transformer"], image, positions, dtype)


def decode_masks(
    params: Params,
    embeddings: Float[AnyArray, "B h w E"],
    prompts: EncodedPrompts,
    config: SamConfig,
    *,
    multimask_output: bool | None = None,
    dtype: DTypeLike = jnp.float32,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    shared: SharedImage | None = None,
) -> Prediction:
    """Decodes masks for Q prompts on each of B images.

    Args:
        multimask_output: True: the three masks for ambiguous prompts; False: the single mask; None: all four, the
            single one first.
        dropout: rate in the decoder's attention and MLP; takes effect only with a `key`, that is in training.
        shared: of these embeddings, from `share_image`, for prompts without a mask: saves computing it again.

    Raises:
        ValueError: `shared` with prompts that carry masks.

    Returns:
        float32 logits in the low_res frame and IoU predictions.
    """
    if shared is not None and prompts.dense.shape[2] != 1:
        raise ValueError("expected prompts without masks with `shared`: a mask changes what the image looks like")
    module = MaskDecoder(config, dtype, dropout)
    outputs = {None: slice(None), True: slice(1, None), False: slice(0, 1)}[multimask_output]

    def decode(prompts: EncodedPrompts) -> Prediction:
        return Prediction(
            *apply(
                module,
                params["mask_decoder"],
                embeddings,
                prompts.image_positions,
                prompts.sparse,
                prompts.sparse_mask,
                prompts.dense,
                deterministic=key is None,
                shared=shared,
                outputs=outputs,
                rngs=None if key is None else {"dropout": key},
            )
        )

    Q = prompts.sparse.shape[1]
    if key is not None or Q == 1:  # so the number of images may be a symbol, for export
        return decode(prompts)
    at_once = max(1, CPU_DECODER_ELEMENTS // (math.prod(embeddings.shape[:3]) * config.prompt_dim))
    if at_once >= Q:
        return decode(prompts)
    return jax.lax.platform_dependent(prompts, cpu=lambda p: _map_over_prompts(decode, p, at_once), default=decode)


def _map_over_prompts(
    decode: Callable[[EncodedPrompts], Prediction], prompts: EncodedPrompts, at_once: int
) -> Prediction:
    """Returns `decode(prompts)`, computed for at most `at_once` prompts per image at a time."""
    B, Q = prompts.sparse.shape[:2]
    size = max(size for size in range(1, at_once + 1) if Q % size == 0)
    own = {"sparse": prompts.sparse, "sparse_mask": prompts.sparse_mask}
    if prompts.dense.shape[1] == Q:  # with masks; without, it is 1, and a single prompt is not cut
        own["dense"] = prompts.dense
    chunks = {name: x.reshape(B, Q // size, size, *x.shape[2:]).swapaxes(0, 1) for name, x in own.items()}
    results = jax.lax.map(lambda chunk: decode(prompts._replace(**chunk)), chunks)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, Q, *x.shape[3:]), results)


def predict_masks(
    params: Params,
    images: Float[Array, "B S S 3"],
    prompts: Prompts,
    config: SamConfig,
    *,
    multimask_output: bool | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Prediction:
    """Encodes images and prompts and decodes masks: `encode_image`, `encode_prompts` and `decode_masks` in one."""
    embeddings = encode_image(params, images, config, dtype=dtype)
    encoded = encode_prompts(params, prompts, config, dtype=dtype)
    return decode_masks(params, embeddings, encoded, config, multimask_output=multimask_output, dtype=dtype)
