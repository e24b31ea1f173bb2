"""RITM beside the original PyTorch code: the same logits, the same zoom, the same masks, from the same weights? CPU.

    python benchmarks/ritm_parity.py --original FOLDER --image IMAGE [--mask MASK] [--networks hrnet18s ...]
    python benchmarks/ritm_parity.py --original FOLDER --image IMAGE --weights CHECKPOINT

--original is a checkout of github.com/SamsungLabs/ritm_interactive_segmentation. Weights are random, from a fixed seed,
and go to us through a .pth that holds what the original saves; or they are those of a published checkpoint. The first
table compares networks on a small image of noise with clicks and a previous mask, which in our case lies in a larger
array. The second compares predictors click by click on a photograph, with the settings of the published evaluation.
Clicks are simulated from --mask (255 object, 128 ignored) and the original's prediction; without it they lie about the
middle. Random networks get a threshold at which one pixel in 200 is object after the first click.
Seconds are those of one click; ours has the compilation in it where an array's shape is new.
Exits with an error where boxes differ, numbers by more than 1e-3, or masks in pixels not within 1e-3 of the threshold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from ritm_original import original_logits, original_model, original_predictor, random_params, use_original

from sam_jax.checkpoints import RITM, load_checkpoint, load_ritm
from sam_jax.data.images import read_image
from sam_jax.evals.clicks import next_click
from sam_jax.ritm import RITM_SIZES, THRESHOLD, Ritm, RitmConfig, RitmPredictor
from sam_jax.ritm.network import predict_logits
from sam_jax.types import PAD, Params

NEAR = 1e-3
SIZE, ARRAY = (96, 128), (128, 160)
CLICK_WEIGHT = 10.0  # beside the image's, of random networks: their masks lie near the clicks


def through_file(params: Params, config: RitmConfig) -> Ritm:
    """The model as we read it from what the original saves."""
    import torch

    model = original_model(params, config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.pth"
        torch.save({"state_dict": model.state_dict(), "config": model._config}, path)
        return load_ritm(path)


def logits_error(params: Params, config: RitmConfig) -> tuple[float, float, float]:
    """Largest difference, lowest and highest logit."""
    random, (h, w) = np.random.default_rng(1), SIZE
    image = random.uniform(size=(h, w, 3)).astype(np.float32)
    previous = random.uniform(size=(h, w)).astype(np.float32)
    points = np.array([[10, 20], [70.25, 44.5], [w - 1, 3], [30, h - 1.5], [5, 60]], np.float32)
    labels = np.array([1, 0, 1, 0, 1])
    theirs = original_logits(
        original_model(params, config), image, previous if config.previous_mask else None, points, labels
    )
    images, maps = np.full((1, *ARRAY, 3), 9, np.float32), np.full((1, *ARRAY), 9, np.float32)
    images[0, :h, :w], maps[0, :h, :w] = image, previous
    slots, kinds = np.zeros((1, 32, 2), np.float32), np.full((1, 32), PAD)
    slots[0, : len(points)], kinds[0, : len(points)] = points, labels
    run = jax.jit(predict_logits, static_argnames="config")
    ours = run(params, images, maps, slots, kinds, np.array([SIZE]), config=config)[0, :h, :w]
    return float(np.abs(ours - theirs).max()), float(theirs.min()), float(theirs.max())


def with_threshold(config: RitmConfig, image: np.ndarray, click: tuple[int, int]) -> Params:
    """Random params with an object of some size after the first click."""
    predictor = RitmPredictor(Ritm(config, random_params(config, clicks=CLICK_WEIGHT)))
    predictor.set_image(image)
    probabilities = predictor.predict([click], [1]).astype(np.float64)
    logits = np.log(probabilities / (1 - probabilities))
    return random_params(config, clicks=CLICK_WEIGHT, threshold=float(np.quantile(logits, 0.995)))


def compare_clicks(
    params: Params, config: RitmConfig, image: np.ndarray, mask: np.ndarray | None, clicks: int
) -> Iterator[dict[str, Any]]:
    """What is different after each click."""
    predictor = RitmPredictor(through_file(params, config))
    predictor.set_image(image)
    answer = original_predictor(original_model(params, config), image)
    points, labels = [first_point(image, mask)], [1]
    for n in range(clicks):
        start = time.perf_counter()
        ours = predictor.predict(points, labels)
        middle = time.perf_counter()
        theirs, box = answer(points[-1], labels[-1])
        end = time.perf_counter()
        differ = (ours > THRESHOLD) != (theirs > THRESHOLD)
        yield {
            "click": (points[-1], labels[-1]),
            "box": predictor.box,
            "same_box": (None if predictor.box is None else tuple(predictor.box)) == box,
            "error": float(np.abs(ours - theirs).max()),
            "object": int((theirs > THRESHOLD).sum()),
            "differ": int(differ.sum()),
            "beyond": int((differ & (np.abs(theirs - THRESHOLD) > NEAR)).sum()),
            "seconds": (middle - start, end - middle),
        }
        if mask is None:
            following: Any = (tuple(int(x) for x in (np.array(points[0]) * (1 + 0.25 * (-1) ** n))), n % 2)
        else:
            following = next_click(mask == 255, theirs > THRESHOLD, points, mask == 128)
        if following is None:
            return
        points.append(following[0])
        labels.append(following[1])


def first_point(image: np.ndarray, mask: np.ndarray | None) -> tuple[int, int]:
    if mask is None:
        return image.shape[1] // 2, image.shape[0] // 2
    click = next_click(mask == 255, np.zeros(mask.shape, bool), [], mask == 128)
    if click is None:
        raise SystemExit("the mask has no pixel of value 255")
    return click[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="folder that contains isegm")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--mask", type=Path, help="of an object in the image: 255, and 128 what is to be ignored")
    parser.add_argument("--networks", nargs="+", choices=RITM_SIZES, default=list(RITM_SIZES))
    parser.add_argument("--weights", type=Path, help="a published checkpoint in place of random weights")
    parser.add_argument("--clicks", type=int, default=5)
    arguments = parser.parse_args()

    use_original(arguments.original)
    warnings.filterwarnings("ignore", "torch.meshgrid")
    image = read_image(arguments.image)
    mask = None if arguments.mask is None else np.asarray(Image.open(arguments.mask).convert("L"))
    if mask is not None and mask.shape != image.shape[:2]:
        sys.exit(f"expected a mask of the image's size {image.shape[:2]}, got {mask.shape}")
    if arguments.weights:
        params, config = load_checkpoint(arguments.weights, RITM)
        networks = {config: params}
    else:
        networks = {RITM_SIZES[name]: random_params(RITM_SIZES[name]) for name in arguments.networks}

    lost = 0
    print("| network | logits, largest difference | range of logits |\n|---|---|---|")
    for config, params in networks.items():
        error, low, high = logits_error(params, config)
        lost += error > NEAR
        print(f"| {config.name} | {error:.1e} | {low:.2f} to {high:.2f} |", flush=True)
    print(f"\n{arguments.image.name}, {image.shape[1]} x {image.shape[0]} pixels\n")
    print("| network | click | box | same | probabilities | object | pixels that differ | not near | s | original s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for config, params in networks.items():
        used = params if arguments.weights else with_threshold(config, image, first_point(image, mask))
        for r in compare_clicks(used, config, image, mask, arguments.clicks):
            lost += r["beyond"] > 0 or not r["same_box"] or r["error"] > NEAR
            ((x, y), label), box = r["click"], r["box"]
            where = "whole image" if box is None else "{}-{}, {}-{}".format(*box)
            print(
                f"| {config.name} | {x}, {y} {'+' if label else '-'} | {where} | {'yes' if r['same_box'] else 'NO'} "
                f"| {r['error']:.1e} | {r['object']} | {r['differ']} | {r['beyond']} "
                f"| {r['seconds'][0]:.2f} | {r['seconds'][1]:.2f} |",
                flush=True,
            )
    if lost:
        sys.exit(f"parity is lost in {lost} rows")


if __name__ == "__main__":
    main()
