"""CPU seconds that a core needs to make one training example of the size of SA-1B's: decode, resize, 64 masks.

    python benchmarks/input_cost.py --images FOLDER [--count 10]

Images of the folder are scaled to 1500 x 2250 and saved as JPEG first, and get 100 masks each, cells of a random
partition: as many as SA-1B has on average, with borders over the whole image. Times are medians of CPU time, in one
thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sam_jax.config import VIT_H, DataConfig
from sam_jax.data.augment import prepare_example
from sam_jax.data.examples import Example
from sam_jax.ops.rle import encode_rle
from sam_jax.progress import ProgressBar

H, W, MASKS = 1500, 2250, 100


def make_example(path: Path, rng: np.random.Generator) -> Example:
    encoded = io.BytesIO()
    with Image.open(path) as file:
        file.convert("RGB").resize((W, H), Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=90)
    ys, xs = np.mgrid[:H, :W]
    best, owner = np.full((H, W), np.inf, np.float32), np.zeros((H, W), np.int32)
    for cell, (y, x) in enumerate(rng.uniform(0, 1, (MASKS, 2)) * (H, W)):
        distance = ((ys - y) ** 2 + (xs - x) ** 2).astype(np.float32)
        owner[distance < best] = cell
        best = np.minimum(best, distance)
    masks = tuple(encode_rle(owner == cell) for cell in range(MASKS))
    return Example(path, (H, W), masks, "scaled", encoded=encoded.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG images")
    parser.add_argument("--count", type=int, default=10, help="images to measure")
    options = parser.parse_args()
    paths = sorted(options.images.rglob("*.jpg"))[: options.count]
    if not paths:
        parser.error(f"--images: expected a folder with *.jpg, found none in {options.images}")
    rng = np.random.default_rng(0)
    examples = [make_example(path, rng) for path in ProgressBar(paths, desc="making images")]
    print(f"JPEG: {statistics.mean(len(e.encoded or b'') for e in examples) / 1e6:.2f} MB an image")
    run_lengths = [sum(len(mask["counts"]) for mask in e.masks) for e in examples]
    print(f"run lengths: {statistics.mean(run_lengths) / 1e3:.0f} kB an image")
    for side in (1024, 256):
        seconds = []
        for example in examples:
            start = time.process_time()
            prepare_example(example, rng, VIT_H.image_size, DataConfig(), side, augment=True)
            seconds.append(time.process_time() - start)
        print(f"loss at {side}: {statistics.median(seconds) * 1e3:.0f} ms of a core an image")
    start = time.process_time()
    for example in examples:
        example.image()
    print(f"of which the JPEG: {(time.process_time() - start) / len(examples) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
