"""Chooses settings of the classical baselines on BSDS500's training pictures: tune_baselines.py [DATA]."""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from sam_jax.data.examples import Example, read_bsds500
from sam_jax.evals.segmenters import Disc, GrabCut, RegionGrowing, Segmenter
from sam_jax.evals.single_point import evaluate_picture, sample_examples, summarize

CANDIDATES: dict[str, Segmenter] = (
    {
        f"region growing {t} {floating=}": RegionGrowing(t, floating)
        for t in (6, 12, 22, 28, 34, 40)
        for floating in (0, 1)
    }
    | {f"GrabCut {r} x {reach}": GrabCut(r, reach) for r in (0.01, 0.02, 0.03) for reach in (2.0, 3.0)}
    | {f"disc {r}": Disc(r) for r in (0.02, 0.03, 0.05, 0.07)}
)


def score(name: str, examples: list[Example]) -> float:
    return summarize(r for e in examples for r in evaluate_picture(CANDIDATES[name], e, clicks=1))["iou@1"]


if __name__ == "__main__":
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    sample = sample_examples(read_bsds500(data / "bsds500", "train"), max_pictures=40, max_masks=3, seed=1)
    with ProcessPoolExecutor(2) as pool:
        for name, value in zip(CANDIDATES, pool.map(score, CANDIDATES, [sample] * len(CANDIDATES)), strict=True):
            print(f"{name:32} mIoU after 1 click {value:.1f}", flush=True)
