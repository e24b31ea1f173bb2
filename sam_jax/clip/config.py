"""Defines the config of a CLIP, and the published ones."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from sam_jax.bounds import Depth, Deviation, Layers, Mean, Side, Width, Within
from sam_jax.config import ModelConfig, check_grid, check_multiple


@dataclasses.dataclass(frozen=True)
class ClipConfig(ModelConfig):
    """The numbers that define one CLIP with a ViT image tower. The defaults are ViT-B/32.

    Reference: Radford et al. 2021, table 20.
    """

    name: str = "clip_b32"
    image_size: Side = 224  # side of an image, pixels
    patch_size: Annotated[int, Within(1, 256)] = 32  # side of a patch, pixels
    vision_dim: Width = 768  # width of the image tower
    vision_depth: Annotated[Depth, Layers(tensors=12)] = 12  # blocks of the image tower
    vision_heads: Width = 12  # attention heads of the image tower's blocks
    text_dim: Width = 512  # width of the text tower
    text_depth: Annotated[Depth, Layers(tensors=12)] = 12  # blocks of the text tower
    text_heads: Width = 8  # attention heads of the text tower's blocks
    text_length: Annotated[int, Within(2, 10_000)] = 77  # most tokens of a text, with the two that begin and end it
    vocabulary: Annotated[int, Within(1, 1_000_000)] = 49408  # number of known tokens
    embedding_dim: Width = 512  # width of the embeddings of images and texts
    pixel_mean: tuple[Mean, Mean, Mean] = (122.7709383, 116.7460125, 104.09373615)  # RGB, 0-255
    pixel_std: tuple[Deviation, Deviation, Deviation] = (68.5005327, 66.6321579, 70.32316305)

    def __post_init__(self) -> None:
        super().__post_init__()
        for total, part, what in (
            (self.image_size, self.patch_size, "image_size must be a multiple of patch_size"),
            (self.vision_dim, self.vision_heads, "vision_dim must be a multiple of vision_heads"),
            (self.text_dim, self.text_heads, "text_dim must be a multiple of text_heads"),
        ):
            check_multiple(what, total, part)
        check_grid(self.grid_size)

    @property
    def grid_size(self) -> int:
        """Returns the side of the image, in patches."""
        return self.image_size // self.patch_size


CLIP_B32 = ClipConfig()
CLIP_B16 = dataclasses.replace(CLIP_B32, name="clip_b16", patch_size=16)
CLIP_L14 = ClipConfig(
    name="clip_l14",
    patch_size=14,
    vision_dim=1024,
    vision_depth=24,
    vision_heads=16,
    text_dim=768,
    text_heads=12,
    embedding_dim=768,
)
CLIP_L14_336 = dataclasses.replace(CLIP_L14, name="clip_l14_336", image_size=336)  # the paper's
CLIP_SIZES: dict[str, ClipConfig] = {config.name: config for config in (CLIP_B32, CLIP_B16, CLIP_L14, CLIP_L14_336)}
