"""Compares two methods mask by mask, with the paper's bars of differences per data set.

sam-jax eval compare --first runs/a/sam.jsonl --second runs/a/ritm_hrnet32.jsonl
"""

from sam_jax.evals.compare import CompareConfig


def get_config() -> CompareConfig:
    return CompareConfig()
