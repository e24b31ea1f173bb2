"""Adds a text prompt to a model, as the paper does: from CLIP's embeddings of the masks, without any texts.

    sam-jax train text --data.path FOLDER [--init-from vit_h]

The paper: CLIP ViT-L/14 at 336 pixels, masks of more than 100 x 100 pixels, large-scale jitter, 120,000 updates of 128
images; the rest as in `vit_h`. Afterwards

    sam-jax segment image.jpg --text "a wheel" --model runs/text/model.safetensors

Hardware: the paper's is 256 A100. Not run here at this size; `text_shapes` is the same run in small.
"""

from pathlib import Path

from sam_jax.config import VIT_H, DataConfig, OptimizerConfig, ParallelConfig, TextConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/text"),
        model=VIT_H,
        text=TextConfig(clip="clip_l14_336"),
        data=DataConfig(
            batch_size=128,
            masks_per_image=64,
            min_original_area=100**2,
            scale_range=(0.1, 2.0),
            flip_probability=0.5,
        ),
        # Decision: the rate falls at the same parts of the run as in `vit_h`.
        optimizer=OptimizerConfig(learning_rate=8e-4, decay_steps=(80_000, 115_555), layer_decay=0.8),
        parallel=ParallelConfig(fsdp=32),
        steps=120_000,
        drop_path=0.4,
        dtype="bfloat16",
    )
