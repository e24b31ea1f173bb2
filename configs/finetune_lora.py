"""Fine-tunes the decoder, and the encoder's attention through low-rank adapters, on images in COCO format.

    sam-jax train finetune_lora --data.path FOLDER [--init-from vit_b]

This is for images unlike those that the model was trained on. The exported model has the adapters in its kernels: it
is as large and as fast as before.
"""

from pathlib import Path

from sam_jax.config import DataConfig, FinetuneConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/finetune_lora"),
        model_from_init=True,
        init_from="vit_b",
        data=DataConfig(batch_size=1, masks_per_image=16, scale_range=(0.75, 1.5), flip_probability=0.5),
        prompts=PromptConfig(point_rounds=4, refine_rounds=1),
        loss=LossConfig(size=256),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,
            warmup_steps=50,
            decay_steps=(1500,),
            weight_decay=0.01,
            layer_decay=1.0,
            clip_norm=1.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(mask_decoder|prompt_encoder)/", lora_rank=8),
        steps=2000,
        drop_path=0.0,
        decoder_dropout=0.0,
        validate_every=250,
        save_every=250,
    )
