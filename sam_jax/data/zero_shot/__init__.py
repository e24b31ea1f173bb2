"""Lists the data sets of the zero-shot evaluations, and reads the layouts in which they are published."""

from sam_jax.data.zero_shot.registry import DATASETS, OTHER_DATASETS, PAPER_DATASETS, ZeroShotDataset

__all__ = ["DATASETS", "OTHER_DATASETS", "PAPER_DATASETS", "ZeroShotDataset"]
