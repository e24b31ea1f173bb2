"""An image and settings for everything mode, and what the official code finds there with the trained test model.

    cd tests; python -m cases.everything FOLDER    # with segment_anything in it: records data/everything_official.json

To be recorded again when data/tiny.safetensors changes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cases.models import TRAINED
from sam_jax import load_model

RECORDED = Path(__file__).parents[1] / "data" / "everything_official.json"
BASE: dict[str, Any] = {
    "points_per_side": 6,
    "points_per_batch": 16,
    "pred_iou_thresh": 0.05,
    "stability_score_thresh": 0.2,
    "output_mode": "coco_rle",
}
CASES: dict[str, dict[str, Any]] = {
    "no crops": {},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "small regions": {"min_mask_region_area": 40},
    "two layers, small regions": {
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 40,
        "crop_overlap_ratio": 0.2,
    },
}


def make_image() -> np.ndarray:
    """Draws discs on a gradient, (150, 220, 3)."""
    y, x = np.mgrid[:150, :220]
    image = np.stack([x, 255 - x, y + 50], -1).astype(np.float64)
    for cx, cy, radius, colour in ((60, 50, 30, 250), (150, 90, 45, 20), (155, 85, 15, 200), (30, 120, 20, 120)):
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = colour
    return image.clip(0, 255).astype(np.uint8)


def record(folder: Path) -> None:
    from official import official_model, use_official

    use_official(folder)
    from segment_anything import SamAutomaticMaskGenerator  # pyright: ignore[reportMissingImports]

    tiny = load_model(TRAINED)
    model = official_model(tiny.params, tiny.config)
    results = {}
    for name, case in CASES.items():
        results[name] = SamAutomaticMaskGenerator(model, **BASE, **case).generate(make_image())
        print(name, len(results[name]))
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    record(Path(sys.argv[1]))
