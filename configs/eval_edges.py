"""Edges on BSDS500 from the embedded model's masks, beside Sobel, Canny and people.

python eval.py configs/eval_edges.py
python eval.py configs/eval_edges.py --maps FOLDER  # edge maps ID.png made elsewhere
"""

from sam_jax.evals.edges import EdgesConfig


def get_config() -> EdgesConfig:
    return EdgesConfig(
        note="The embedded model was trained on the regions of BSDS500's train and val parts: "
        "its figures are in-domain, not zero-shot."
    )
