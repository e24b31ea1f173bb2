"""Fine-tunes the whole model on images in COCO format.

    sam-jax train finetune_full --data.path FOLDER [--init-from vit_b]

This is for thousands of images and accelerators; with fewer, finetune_lora forgets less.
"""

from pathlib import Path

from sam_jax.config import DataConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/finetune_full"),
        model_from_init=True,
        init_from="vit_b",
        data=DataConfig(batch_size=1, masks_per_image=16, scale_range=(0.75, 1.5), flip_probability=0.5),
        prompts=PromptConfig(point_rounds=4, refine_rounds=1),
        loss=LossConfig(size=256),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            warmup_steps=50,
            decay_steps=(1500,),
            weight_decay=0.1,
            layer_decay=0.8,
            clip_norm=1.0,
        ),
        steps=2000,
        drop_path=0.1,
        decoder_dropout=0.0,
        validate_every=250,
        save_every=250,
    )
