"""Trains ViT-B as in the paper: 180,000 updates of 128 images, from masked-autoencoder weights, on prepared SA-1B.

    sam-jax prepare SA1B_FOLDER --out sa1b
    sam-jax train vit_b --data.path sa1b --init-encoder-from mae_pretrain_vit_base.pth

Hardware: 128 chips, an image on each. Not run; docs/scaling.md has what the TPU compiler says of its memory and time.
"""

from pathlib import Path

from sam_jax.config import VIT_B, DataConfig, OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/vit_b"),
        model=VIT_B,
        data=DataConfig(batch_size=128, masks_per_image=64),
        # The paper gives the milestones of ViT-H alone; these are at the same fractions of the run.
        optimizer=OptimizerConfig(learning_rate=8e-4, decay_steps=(120_000, 173_333), layer_decay=0.6),
        steps=180_000,
        drop_path=0.6,
        dtype="bfloat16",
    )
