"""Trains the embedded `tiny` model, on images and crops of 128 pixels.

Five runs, each from the model of the one before, the last from the mean of the two before it:

    sam-jax prepare FOLDER --format named --out prepared
    sam-jax train tiny_crops --data.path prepared
    sam-jax train tiny --data.path prepared --out runs/tiny_1 \
        --init-from runs/tiny_crops/model.safetensors --steps 540 --optimizer.learning-rate 1e-3
    sam-jax train tiny --data.path prepared --out runs/tiny_2 \
        --init-from runs/tiny_1/model.safetensors --steps 4200 --optimizer.learning-rate 1e-3 \
        --optimizer.decay-steps 3900 --prompts.point-rounds 1 --prompts.refine-rounds 0
    sam-jax train tiny --data.path prepared --init-from runs/tiny_2/model.safetensors
    sam-jax train tiny --data.path prepared --out runs/tiny_4 \
        --init-from mean.safetensors --steps 6000 --optimizer.learning-rate 1e-3 --optimizer.decay-steps 4500 5500 \
        --prompts.point-rounds 1 --prompts.refine-rounds 0 --ema-decay 0.995 --seed 7

The fourth takes all rounds and lowers the rate near its end. Hardware: two CPU cores, shared with other work. What each
of them really was, how long it took and what the result measures is in docs/model_card_tiny.md.
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
            learning_rate=7e-4,
            warmup_steps=50,
            decay_steps=(430,),
            betas=(0.9, 0.98),
            weight_decay=0.05,
            layer_decay=1.0,  # nothing is pre-trained
            clip_norm=1.0,
        ),
        steps=560,
        drop_path=0.0,  # a run this short underfits
        decoder_dropout=0.0,
        remat=False,
        validate_every=140,
        save_every=100,
    )
