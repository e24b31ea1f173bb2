"""Shows where one click fails: the masks of COCO's val2017 that a model gets most wrong, for its model card.

    python benchmarks/failures.py --data FOLDER [--model small] [--count 6] [--min-area 0.02] [--out docs/failures.jpg]

FOLDER holds coco_small. The click is at the centre of the object and the prediction is the most confident of the three
masks. Only images whose licence lets them be shown are looked at; their sources are printed, as a credit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from sam_jax import SamPredictor, load_model
from sam_jax.data.examples import Example
from sam_jax.evals.clicks import first_click
from sam_jax.evals.metrics import mask_iou
from sam_jax.evals.single_point import SinglePointConfig, open_sample
from sam_jax.files import read_json, replacing
from sam_jax.ops.draw import WHITE, add_caption, draw_masks, tile
from sam_jax.ops.rle import decode_rle
from sam_jax.progress import ProgressBar
from sam_jax.prompting.prompts import Prompt

DATASET = "coco_small"
LICENCES = {4: "CC BY 2.0", 7: "no known copyright restrictions", 8: "United States Government work"}  # COCO's numbers
HEIGHT, WIDTH = 225, 300  # of an image as it is shown, pixels


class Failure(NamedTuple):
    iou: float
    best: float  # IoU of the best of the three masks
    example: Example
    click: tuple[float, float]
    predicted: np.ndarray  # (H, W), bool
    ground_truth: np.ndarray  # (H, W), bool


def worst_of(predictor: SamPredictor, example: Example, min_area: float) -> Failure | None:
    """Returns the mask with the lowest IoU of an image, of those that cover at least a fraction of it."""
    ground_truths = [decode_rle(mask) for mask in example.masks]
    ground_truths = [mask for mask in ground_truths if mask.mean() >= min_area]
    if not ground_truths:
        return None
    clicks = [first_click(mask)[0] for mask in ground_truths]
    predictor.set_image(example.image())
    result = predictor.predict_prompts([Prompt(np.array([click]), np.array([1])) for click in clicks])
    failures = []
    for q, ground_truth in enumerate(ground_truths):
        ious = [mask_iou(mask, ground_truth) for mask in result.masks[q]]
        chosen = int(result.iou_predictions[q].argmax())
        failures.append(Failure(ious[chosen], max(ious), example, clicks[q], result.masks[q, chosen], ground_truth))
    return min(failures, key=lambda failure: (failure.iou, failure.best))


def draw(failure: Failure) -> list[np.ndarray]:
    image = failure.example.image()
    views = [draw_masks(image, [], [failure.click], [1]), draw_masks(image, [failure.predicted])]
    views.append(draw_masks(image, [failure.ground_truth]))
    captions = ("one click", f"predicted: IoU {failure.iou:.2f}, best of 3: {failure.best:.2f}", "ground truth")
    return [add_caption(fit(view), caption) for view, caption in zip(views, captions, strict=True)]


def fit(image: np.ndarray) -> np.ndarray:
    """Returns an image in the middle of a white rectangle."""
    scale = min(HEIGHT / image.shape[0], WIDTH / image.shape[1])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:HEIGHT, :WIDTH]
    top, left = (HEIGHT - small.shape[0]) // 2, (WIDTH - small.shape[1]) // 2
    result = np.full((HEIGHT, WIDTH, 3), WHITE, np.uint8)
    result[top : top + small.shape[0], left : left + small.shape[1]] = small
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", default="small", help="name or path of a checkpoint")
    parser.add_argument("--count", type=int, default=6, help="objects, one an image, two in a row")
    parser.add_argument("--min-area", type=float, default=0.02, help="of the objects, as a fraction of the image")
    parser.add_argument("--out", type=Path, default=Path("docs/failures.jpg"))
    options = parser.parse_args()

    entries: list[dict[str, Any]] = read_json(options.data / DATASET / "instances.json")["images"]
    shown = {Path(entry["file_name"]).stem: entry for entry in entries if entry["flickr_license"] in LICENCES}
    sample = open_sample(SinglePointConfig(options.data, max_images=0, max_masks=0), DATASET)
    examples = [example for example in sample.examples.values() if example.path.stem in shown]
    predictor = SamPredictor(load_model(options.model))
    worst = [worst_of(predictor, example, options.min_area) for example in ProgressBar(examples, unit="image")]
    failures = sorted((failure for failure in worst if failure), key=lambda failure: (failure.iou, failure.best))[
        : options.count
    ]
    rows = [draw(failures[i]) + draw(failures[i + 1]) for i in range(0, len(failures) - 1, 2)]
    with replacing(options.out) as temporary:
        Image.fromarray(tile(rows)).save(temporary, "JPEG", quality=85, optimize=True, progressive=True)
    for failure in failures:
        entry = shown[failure.example.path.stem]
        print(f"- {entry['file_name']}: {entry['flickr_url']}, {LICENCES[entry['flickr_license']]}")


if __name__ == "__main__":
    main()
