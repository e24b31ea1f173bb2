"""Chooses settings of the proposal baseline on training images: tune_felzenszwalb.py ANNOTATIONS IMAGES [COUNT].

The setting with the best AR@1000 is the default in `sam_jax.evals.proposal_baselines`.
"""

import sys
from pathlib import Path

from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.evals.mask_scores import RecallCounts, count_found
from sam_jax.evals.proposal_baselines import Felzenszwalb
from sam_jax.progress import ProgressBar

NUMBERS = (10, 100, 1000)
FINE, MIDDLE, COARSE = (800, 400, 200, 100, 50), (1600, 800, 400, 200, 100), (3200, 1600, 800, 400, 200)
CANDIDATES = [
    *(Felzenszwalb(scales, min_size=size) for scales in (FINE, MIDDLE, COARSE) for size in (50, 100, 200)),
    *(Felzenszwalb(MIDDLE, sigma=sigma, min_size=100) for sigma in (0.5, 1.2)),
]

if __name__ == "__main__":
    ground_truth = read_ground_truth(Path(sys.argv[1]), Path(sys.argv[2]))
    ground_truth = ground_truth.take(int(sys.argv[3]) if len(sys.argv) > 3 else 60)
    images = [(image.image(), image.objects()) for image in ground_truth.images.values()]
    print("AR@10, AR@100, AR@1000 in percent")
    for method in ProgressBar(CANDIDATES, unit="setting"):
        parts = [count_found(objects, method.propose([image])[0], {}, NUMBERS) for image, objects in images]
        means = RecallCounts.sum(parts, NUMBERS).average("all").values()
        ProgressBar.write(f"{' '.join(f'{100 * (mean or 0):.1f}' for mean in means)}  {method}")
