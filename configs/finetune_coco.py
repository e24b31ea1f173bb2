"""Fine-tunes the decoder on images of one's own, in COCO format; each image is encoded once.

    sam-jax train finetune_coco --data.path FOLDER [--init-from vit_b]

FOLDER holds annotations and images as COCO tools write them. This is the quickest of three ways, for few images;
finetune_lora adapts the encoder too, finetune_full trains everything.
"""

from pathlib import Path

from sam_jax.config import DataConfig, FinetuneConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/finetune_coco"),
        model_from_init=True,
        init_from="vit_b",
        data=DataConfig(batch_size=1, masks_per_image=16),
        prompts=PromptConfig(point_rounds=4, refine_rounds=1),
        loss=LossConfig(size=256),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            warmup_steps=50,
            decay_steps=(1500,),
            weight_decay=0.01,
            layer_decay=1.0,
            clip_norm=1.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(mask_decoder|prompt_encoder)/", cache_embeddings=True),
        steps=2000,
        drop_path=0.0,
        decoder_dropout=0.0,
        validate_every=250,
        save_every=250,
    )
