"""Trains ViT-H as in the paper: 90,000 updates of 256 images, from masked-autoencoder weights, on prepared SA-1B.

    sam-jax prepare SA1B_FOLDER --out sa1b
    sam-jax train vit_h --data.path sa1b --init-encoder-from mae_pretrain_vit_huge.pth

Hardware: 256 chips, an image on each (the paper: 256 A100, 68 hours). Not run; docs/scaling.md has what the TPU
compiler says of its memory and time.
"""

from pathlib import Path

from sam_jax.config import VIT_H, DataConfig, OptimizerConfig, ParallelConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/vit_h"),
        model=VIT_H,
        data=DataConfig(batch_size=256, masks_per_image=64),
        optimizer=OptimizerConfig(learning_rate=8e-4, decay_steps=(60_000, 86_666), layer_decay=0.8),
        parallel=ParallelConfig(fsdp=32),
        steps=90_000,
        drop_path=0.4,
        dtype="bfloat16",
    )
