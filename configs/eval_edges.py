"""Edges on BSDS500 from the embedded model's masks, beside Sobel, Canny and people.

python eval.py configs/eval_edges.py
python eval.py configs/eval_edges.py --maps FOLDER  # edge maps ID.png made elsewhere
"""

from sam_jax.evals.edges import EdgesConfig


def get_config() -> EdgesConfig:
    return EdgesConfig()
