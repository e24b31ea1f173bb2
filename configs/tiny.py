"""Second part of the embedded `tiny` model: all rounds of prompts, on pictures and crops of 128 pixels.

    python train.py configs/tiny_crops.py
    python train.py configs/tiny.py --init-from runs/tiny_crops/model.safetensors

Trains from scratch without --init-from. What the embedded checkpoint has seen of this, and what
it measures, is in docs/model_card_tiny.md.
"""

from pathlib import Path

from sam_jax.config import TINY, DataConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/tiny"),
        model=TINY,
        data=DataConfig(
            batch_size=4,
            masks_per_image=8,
            scale_range=(1.0, 2.2),
            flip_probability=0.5,
            colour_jitter=0.2,
            min_area=12,
        ),
        # 8 and 2 rounds in the paper; with 3 and 1 a step takes half the time on a CPU.
        prompts=PromptConfig(point_rounds=3, refine_rounds=1, box_probability=0.25),
        loss=LossConfig(size=64, iou_of_all_masks=True),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=30,
            decay_steps=(3000, 3800),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=1.0,  # nothing is pre-trained
            clip_norm=1.0,
        ),
        steps=4000,
        drop_path=0.0,  # a run this short underfits
        decoder_dropout=0.0,
        remat=False,
        validate_every=200,
        save_every=100,
    )
