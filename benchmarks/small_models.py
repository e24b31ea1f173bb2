"""Times models on this machine's CPU as people use them: an image, a click, and all masks of a large image.

    python benchmarks/small_models.py small tests/data/tiny.safetensors --image PHOTO [--rounds 15] [--out times.json]

The models are named or paths of checkpoints. They share one process and take turns, so that a machine that slows down
does so for all. `image` is `SamPredictor.set_image`, resizing included; `click` is `SamPredictor.predict` of one point
on that image, to three masks of its size. Everything mode is timed for the first model alone, with the options that
`sam-jax everything` takes for it, on the image enlarged to --everything; its first run, which compiles, is shown apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from sam_jax import SamPredictor, load_model, read_image
from sam_jax.everything.options import GeneratorOptions


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interactive_tasks(model: str, image: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What somebody waits for on an annotation page; each task returns when its result is there."""
    predictor = SamPredictor(load_model(model))
    point = np.array([[image.shape[1] // 2, image.shape[0] // 2]])

    def set_image() -> None:
        predictor.set_image(image)
        jax.block_until_ready(predictor.get_image_embedding())

    return {"image": set_image, "click": lambda: predictor.predict(point, np.array([1]))}


def report(times: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table of medians, and of the first model's over the others'."""
    names = list(times)
    head = [*names, *(f"{names[0]} / {name}" for name in names[1:])]
    lines = [f"| milliseconds (median) | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for task in times[names[0]]:
        medians = [statistics.median(times[name][task]) for name in names]
        cells = [f"{1000 * median:.1f}" for median in medians]
        cells += [f"{medians[0] / median:.2f}" for median in medians[1:]]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names of models or paths of checkpoints")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each")
    parser.add_argument(
        "--everything", default="4000x3000", metavar="WxH", help="size for everything mode; 0: leave out"
    )
    parser.add_argument("--everything-rounds", type=int, default=2, help="measurements of everything mode")
    parser.add_argument("--out", type=Path, help="write all times as JSON")
    options = parser.parse_args()

    image = read_image(options.image)
    tasks = {Path(model).stem: interactive_tasks(model, image) for model in options.models}
    times: dict[str, dict[str, list[float]]] = {name: {task: [] for task in own} for name, own in tasks.items()}
    for turn in range(options.rounds + 1):
        for name, own in tasks.items():
            for task, work in own.items():
                elapsed = seconds(work)
                if turn:  # the first compiles
                    times[name][task].append(elapsed)
    H, W = image.shape[:2]
    print(f"{options.image.name}, {W} x {H}, {os.cpu_count()} cores, {options.rounds} rounds\n\n{report(times)}")

    everything = []
    if options.everything != "0":
        width, height = map(int, options.everything.split("x"))
        large = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        generator = GeneratorOptions(model=options.models[0]).load()
        found: list[Any] = []
        for _ in range(options.everything_rounds + 1):
            everything.append(seconds(lambda: found.append(generator.generate(large))))
        later = ", ".join(f"{each:.1f}" for each in everything[1:])
        print(f"\neverything mode, {width} x {height}: {later} s ({everything[0]:.1f} s with compiling), ", end="")
        print(f"{len(found[-1])} masks; {generator.config}")
    if options.out:
        options.out.write_text(json.dumps({"interactive": times, "everything": everything}, indent=1))


if __name__ == "__main__":
    main()
