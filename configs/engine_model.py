"""Trains the decoder on a project's masks, each image encoded once, for `sam-jax engine train`.

`out`, `data.path` and `init_from` are the project's. It suits the embedded model and a few hundred images;
with more, finetune_lora and finetune_full adapt the image encoder too.
"""

from pathlib import Path

from sam_jax.config import DataConfig, FinetuneConfig, LossConfig, OptimizerConfig, PromptConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("run"),
        model_from_init=True,
        data=DataConfig(format="sa1b", batch_size=4, masks_per_image=16, min_area=12),
        prompts=PromptConfig(point_rounds=2, refine_rounds=1, box_probability=0.25),
        loss=LossConfig(size=128, iou_of_all_masks=True),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            warmup_steps=50,
            decay_steps=(300,),
            weight_decay=0.01,
            layer_decay=1.0,
            clip_norm=1.0,
        ),
        finetune=FinetuneConfig(trainable=r"^(mask_decoder|prompt_encoder)/", cache_embeddings=True),
        steps=400,
        drop_path=0.0,
        decoder_dropout=0.0,
        remat=False,
        ema_decay=0.99,
        validate_every=100,
        save_every=100,
    )
