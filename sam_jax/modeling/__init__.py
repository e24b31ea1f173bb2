"""Arrays in, arrays out."""

from sam_jax.modeling.sam import (
    EncodedPrompts,
    decode_masks,
    encode_image,
    encode_prompts,
    init_params,
    normalize_images,
    predict_masks,
)

__all__ = [
    "EncodedPrompts",
    "decode_masks",
    "encode_image",
    "encode_prompts",
    "init_params",
    "normalize_images",
    "predict_masks",
]
