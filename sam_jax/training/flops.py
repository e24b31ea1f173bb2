"""How much arithmetic a step is: the matrix products that the model needs, whatever the program does beside them."""

from __future__ import annotations

import jax

from sam_jax.clip.config import ClipConfig
from sam_jax.config import SamConfig, TrainConfig
from sam_jax.modeling.encoders import encoder_of
from sam_jax.modeling.image_encoder import neck_flops
from sam_jax.training.trainable import EncoderWork

# Dense bfloat16 products, FLOP/s of a device as JAX counts them, from the makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def encoder_flops(config: SamConfig) -> float:
    """Returns the operations of the encoder's forward pass on one image; a product of (n, k) and (k, m) is 2 n k m."""
    return encoder_of(config.encoder).flops(config.encoder) + neck_flops(config)


def decoder_flops(config: SamConfig, sparse_tokens: int) -> float:
    """Of one prompt, forward, without what the prompts of an image share."""
    D, pixels = config.prompt_dim, config.grid_size**2
    inner = D // config.decoder_attention_downsample
    tokens = 1 + config.num_mask_tokens + sparse_tokens
    self_attention = tokens * 4 * D * D + 2 * tokens**2 * D
    cross_attention = 2 * (tokens + pixels) * D * inner + 2 * tokens * pixels * inner
    layer = self_attention + 2 * cross_attention + 2 * tokens * D * config.decoder_mlp_dim
    upscaling = pixels * D * D + 4 * pixels * (D // 4) * (D // 2)
    masks = 16 * pixels * (D // 8) * config.num_mask_tokens
    return 2.0 * (config.decoder_depth * layer + cross_attention + upscaling + masks)


def image_tower_flops(config: ClipConfig) -> float:
    """Of one image, forward; the last block's queries, which are one, count like the others."""
    D, tokens = config.vision_dim, config.grid_size**2 + 1
    block = 12 * D * D + 2 * tokens * D
    return 2.0 * tokens * (config.patch_size**2 * 3 * D + config.vision_depth * block)


def step_flops(config: TrainConfig, *, encoder: EncoderWork, clip: ClipConfig | None = None) -> float:
    """Of one update on the global batch. A backward pass is twice the forward one; nothing is counted twice for
    rematerialisation.

    Args:
        encoder: "trained", "frozen" (forward only) or "cached" (not at all).
        clip: of a run that trains the text prompt, whose image tower sees every mask once.
    """
    rounds = 1 + config.prompts.point_rounds + config.prompts.refine_rounds
    tokens = 2 + config.prompts.point_rounds
    passes = {"trained": 3, "frozen": 1, "cached": 0}[encoder]
    image = passes * encoder_flops(config.model)
    image += 3 * rounds * config.data.masks_per_image * decoder_flops(config.model, tokens)
    if clip is not None:
        image += config.data.masks_per_image * image_tower_flops(clip)
    return config.data.batch_size * image


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device, or None if it is not known (as of a CPU)."""
    kind = device.device_kind
    best = max((name for name in PEAK_FLOPS if kind.startswith(name)), key=len, default=None)
    return None if best is None else PEAK_FLOPS[best]
