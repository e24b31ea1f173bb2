"""The data sets of the zero-shot evaluations as they are published: what they are, and readers for their layouts."""

from sam_jax.data.zero_shot.registry import DATASETS, OTHER_DATASETS, PAPER_DATASETS, ZeroShotDataset

__all__ = ["DATASETS", "OTHER_DATASETS", "PAPER_DATASETS", "ZeroShotDataset"]
