"""Models small enough to compile and run in a test: configs, and the weights of one that was trained."""

import dataclasses
from pathlib import Path

from sam_jax.clip.config import ClipConfig
from sam_jax.config import SamConfig, ViTConfig
from sam_jax.detection.config import DetectorConfig

# In the official architecture and with trained weights, for comparisons with other implementations.
TINY = SamConfig(
    name="tiny",
    encoder=ViTConfig(
        image_size=128, patch_size=8, dim=256, depth=6, heads=4, window_size=8, global_attention_blocks=(2, 5)
    ),
    prompt_dim=128,
    decoder_heads=4,
    decoder_mlp_dim=512,
    iou_head_hidden_dim=128,
)
TRAINED = Path(__file__).parents[1] / "data" / "tiny.safetensors"

SMALL = dataclasses.replace(
    TINY,
    encoder=dataclasses.replace(
        TINY.encoder, image_size=64, dim=32, depth=2, heads=2, window_size=3, global_attention_blocks=(1,)
    ),
    prompt_dim=32,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_dim=64,
    iou_head_hidden_dim=32,
)
SMALL_CLIP = ClipConfig("small", 32, 8, 128, 2, 2, 64, 2, 1, 77, 49408, 32)
WITH_TEXT = dataclasses.replace(SMALL, text_dim=SMALL_CLIP.embedding_dim, text_encoder=SMALL_CLIP.name)

DETECTOR = DetectorConfig(
    name="smallest",
    encoder=SMALL.encoder,
    category_ids=(1,),
    cascade=True,
    channels=16,
    fc_dim=32,
    convolutions=1,
    anchor_cells=4.0,
    box_size=28.0,
    pre_nms=40,
    proposals=30,
    detections=10,
)
