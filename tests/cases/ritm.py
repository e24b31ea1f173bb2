"""Random networks, images and clicks, and what the original RITM code makes of them.

cd tests; python -m cases.ritm FOLDER    # a checkout of it: records data/ritm_original.json
"""

import json
import sys
from pathlib import Path

import numpy as np

from sam_jax.ritm import RitmConfig

RECORDED = Path(__file__).parents[1] / "data" / "ritm_original.json"
TINY = RitmConfig(name="tiny", width=4, ocr_width=8, small=True)
NETWORKS = {
    "iterative, small": TINY,
    "not iterative, ReLU": RitmConfig(name="plain", width=3, ocr_width=4, previous_mask=False, leaky_relu=False),
}
SHAPE = (75, 101)  # odd at every resolution
STEP = 8  # every so many pixels are recorded
# Foreground, background; fractions; near the border, beyond it on one side, beyond it on two sides (not drawn).
POINTS = np.array([[10, 20], [50.3, 44.7], [99, 1], [30.5, -2.25], [-2, -1]], np.float32)
LABELS = np.array([1, 0, 1, 0, 1])
# Clicks one after the other, on `photo`; the zoom is small as it is.
CLICKS = [((60, 40), 1), ((70, 45), 1), ((20, 80), 0), ((55, 60), 1), ((100, 20), 1), ((62, 42), 0), ((110, 70), 1)]
ZOOM = {"side": 100, "min_side": 40}
# seed, weight of clicks, threshold
OBJECTS = {"moves": (0, 10.0, 0.38), "is lost and found": (6, 10.0, -0.12)}


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Makes an image (H, W, 3), 0-1, and previous probabilities (H, W)."""
    random = np.random.default_rng(1)
    return random.uniform(size=(*SHAPE, 3)).astype(np.float32), random.uniform(size=SHAPE).astype(np.float32)


def photo() -> np.ndarray:
    """Draws discs on a gradient, (96, 128, 3)."""
    y, x = np.mgrid[:96, :128]
    image = np.stack([2 * x, 255 - 2 * x, y + 50], -1)
    for cx, cy, radius, colour in ((60, 50, 20, 250), (100, 30, 15, 20), (104, 26, 6, 200), (20, 80, 12, 120)):
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = colour
    return image.clip(0, 255).astype(np.uint8)


def record(folder: Path) -> None:
    from ritm_original import original_logits, original_model, original_predictor, random_params, use_original

    use_original(folder)
    image, previous = inputs()
    results: dict = {"logits": {}, "answers": {}}
    for name, config in NETWORKS.items():
        model = original_model(random_params(config), config)
        logits = original_logits(model, image, previous if config.previous_mask else None, POINTS, LABELS)
        results["logits"][name] = logits[::STEP, ::STEP].round(6).tolist()
    zoom = {"target_size": ZOOM["side"], "min_crop_size": ZOOM["min_side"]}
    for name, (seed, weight, threshold) in OBJECTS.items():
        answer = original_predictor(original_model(random_params(TINY, seed, weight, threshold), TINY), photo(), **zoom)
        results["answers"][name] = [
            {"box": box, "probabilities": found[::STEP, ::STEP].round(6).tolist(), "area": int((found > 0.5).sum())}
            for found, box in (answer(point, label) for point, label in CLICKS)
        ]
    RECORDED.write_text(json.dumps(results, default=float) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    record(Path(sys.argv[1]))
