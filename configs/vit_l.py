"""Trains ViT-L as in the paper: 180,000 updates of 128 images, from masked-autoencoder weights, on prepared SA-1B.

    sam-jax prepare SA1B_FOLDER --out sa1b
    sam-jax train vit_l --data.path sa1b --init-encoder-from mae_pretrain_vit_large.pth

Hardware: 128 chips, an image on each. Not run; docs/scaling.md has what the TPU compiler says of its memory and time.
"""

from pathlib import Path

from sam_jax.config import VIT_L, DataConfig, OptimizerConfig, ParallelConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/vit_l"),
        model=VIT_L,
        data=DataConfig(batch_size=128, masks_per_image=64),
        # The paper gives the milestones of ViT-H alone; these are at the same fractions of the run.
        optimizer=OptimizerConfig(learning_rate=4e-4, decay_steps=(120_000, 173_333), layer_decay=0.8),
        parallel=ParallelConfig(fsdp=16),
        steps=180_000,
        drop_path=0.4,
        dtype="bfloat16",
    )
