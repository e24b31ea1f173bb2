"""Two methods mask by mask, with the paper's bars of differences per data set.

python eval.py configs/eval_compare.py --first runs/a/sam.jsonl --second runs/a/ritm_hrnet32.jsonl
"""

from sam_jax.evals.compare import CompareConfig


def get_config() -> CompareConfig:
    return CompareConfig()
