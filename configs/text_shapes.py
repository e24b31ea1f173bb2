"""Learns a text prompt in minutes on a CPU, on generated images: the config `text` in small.

    python benchmarks/text_shapes.py

draws the images, trains the CLIP that this config names, trains this, and evaluates it as `sam-jax eval text` does.
Unlike in the paper, a fifth of the first prompts are clicks. An earlier run with texts alone and one round of clicks
in place of two gave as much for texts (72.6), but less with a click that corrects them (70.5), and nothing for clicks
alone (10.9).

Result on 200 new images with 768 shapes, mIoU in percent: text 72.1 (best of
three 75.2), text and one corrective click 79.0, one click without a text 80.9; with another mask's text in place of
its own, 15.5. Hardware: less than one CPU core, shared with other work: 40 s for the images, 371 s for the CLIP,
1141 s for this.
"""

from pathlib import Path

from sam_jax.config import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    PromptConfig,
    SamConfig,
    TextConfig,
    TrainConfig,
    ViTConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/text_shapes/sam"),
        model=SamConfig(
            name="shapes",
            encoder=ViTConfig(
                image_size=64, patch_size=8, dim=64, depth=3, heads=2, window_size=4, global_attention_blocks=(0, 2)
            ),
            prompt_dim=64,
            decoder_heads=4,
            decoder_mlp_dim=128,
            iou_head_hidden_dim=64,
        ),
        data=DataConfig(
            path=Path("runs/text_shapes/train"),
            format="coco",
            batch_size=8,
            masks_per_image=4,
            flip_probability=0.5,
        ),
        text=TextConfig(clip="runs/text_shapes/clip.safetensors", probability=0.8),
        prompts=PromptConfig(point_rounds=2, refine_rounds=0, box_probability=0.0),
        loss=LossConfig(size=32, iou_of_all_masks=True),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=100,
            decay_steps=(1700,),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=1.0,
            clip_norm=1.0,
        ),
        steps=2000,
        drop_path=0.0,
        decoder_dropout=0.0,
        remat=False,
        validate_every=500,
        save_every=1000,
    )
