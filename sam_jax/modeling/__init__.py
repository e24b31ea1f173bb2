"""Arrays in, arrays out."""

from sam_jax.modeling.image_encoder import encode_maps, map_shapes
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
    "encode_maps",
    "encode_prompts",
    "init_params",
    "map_shapes",
    "normalize_images",
    "predict_masks",
    "share_image",
]
