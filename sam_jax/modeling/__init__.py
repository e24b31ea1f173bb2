"""Arrays in, arrays out."""

from sam_jax.modeling.sam import (
    EncodedPrompts,
    SharedImage,
    decode_masks,
    encode_image,
    encode_prompts,
    init_params,
    normalize_images,
    predict_masks,
    share_image,
)

__all__ = [
    "EncodedPrompts",
    "SharedImage",
    "decode_masks",
    "encode_image",
    "encode_prompts",
    "init_params",
    "normalize_images",
    "predict_masks",
    "share_image",
]
