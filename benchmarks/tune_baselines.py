"""Chooses settings of the classical baselines on training images of BSDS500 and COCO: tune_baselines.py [DATA].

The setting with the best mean of both is the default in `sam_jax.evals.baselines`.
"""

import sys
from pathlib import Path

import numpy as np

from sam_jax.data.training_sets import read_training_sets
from sam_jax.evals.baselines import Disc, GrabCut, RegionGrowing
from sam_jax.evals.click_runs import sample_examples
from sam_jax.evals.click_simulation import ClickRules, simulate_images
from sam_jax.evals.segmenters import Segmenter
from sam_jax.progress import ProgressBar

CANDIDATES: list[Segmenter] = [
    *(RegionGrowing(t) for t in (12, 16, 22, 28, 34, 40, 46)),
    *(RegionGrowing(t, floating=True) for t in (2, 4, 6, 9)),
    *(Disc(radius) for radius in (0.02, 0.025, 0.03, 0.035, 0.04, 0.05)),
    *(
        GrabCut(radius, reach)
        for radius, reach in [(0.015, 4), (0.02, 3), (0.02, 4), (0.025, 3), (0.025, 4), (0.03, 3)]
    ),
    GrabCut(0.025, 3, side=10_000),
]

if __name__ == "__main__":
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    samples = {
        name: list(sample_examples(read_training_sets(data, (name,)), 60, 3, seed=1).examples.values())
        for name in ("bsds500", "coco_small")
    }
    print("mIoU in percent after 1 click on", ", ".join(samples))
    for method in ProgressBar(CANDIDATES, unit="setting"):
        scores = [
            100
            * np.mean(
                [r["iou"][0] for result in simulate_images(method, sample, ClickRules(1)) for r in result.records]
            )
            for sample in samples.values()
        ]
        ProgressBar.write(f"{sum(scores) / len(scores):.1f}  {' '.join(f'{score:.1f}' for score in scores)}  {method}")
