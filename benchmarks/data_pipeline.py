"""Images per second of the training input, on images like SA-1B's.

taskset -c 1 python benchmarks/data_pipeline.py [--images 16] [--masks 100]

Makes JPEG images of 1500 x 2250 with overlapping masks of very different sizes, most of a few per cent, some of half
the image. Prints the time of every part of one record, and what a loader yields.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sam_jax.config import VIT_B, DataConfig
from sam_jax.data.augment import prepare_example
from sam_jax.data.examples import Example
from sam_jax.data.loader import make_loader
from sam_jax.data.prepare import prepare
from sam_jax.data.prepared import PreparedSource
from sam_jax.data.sa1b import Sa1bSource
from sam_jax.ops.resample import resample_runs
from sam_jax.ops.rle import counts_from_rle, encode_rle

H, W = 1500, 2250
LOSS_SIZES = (1024, 256)


def make_image(rng: np.random.Generator) -> np.ndarray:
    """Smooth areas with edges and some noise: its JPEG is of a photograph's size, about 0.9 MB at quality 90."""
    coarse = rng.integers(0, 255, (24, 36, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (W, H), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image += rng.normal(0, 6, image.shape).astype(np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


def mask(rng: np.random.Generator) -> np.ndarray:
    """A blob with a rough outline; its diameter is log-uniform from 20 pixels to the image's height."""
    diameter = np.exp(rng.uniform(np.log(20), np.log(1500)))
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    radius = np.ones(200)
    for wave in range(1, 30):
        radius += rng.normal(0, 0.25 / wave) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    xy = rng.uniform(0, (W, H)) + (0.5 * diameter * radius)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    canvas = np.zeros((H, W), np.uint8)
    cv2.fillPoly(canvas, [xy.astype(np.int32)], 1)
    return canvas.astype(bool)


def write_tar(path: Path, images: int, masks: int) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            buffer = io.BytesIO()
            Image.fromarray(make_image(rng)).save(buffer, "JPEG", quality=90)
            annotations = [{"segmentation": encode_rle(mask(rng))} for _ in range(masks)]
            content = {"image": {"height": H, "width": W, "image_id": number}, "annotations": annotations}
            for name, data in (("jpg", buffer.getvalue()), ("json", json.dumps(content).encode())):
                member = tarfile.TarInfo(f"sa_{number}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def seconds(function: Callable[[Example], object], examples: list[Example]) -> float:
    """Of a core, per call; the best of three rounds, for there may be other users of the machine."""
    rounds = []
    for _ in range(3):
        started = time.process_time()
        for example in examples:
            function(example)
        rounds.append((time.process_time() - started) / len(examples))
    return min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--masks", type=int, default=100)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tar(folder / "sa_000000.tar", arguments.images, arguments.masks)
        tar = Sa1bSource([folder / "sa_000000.tar"])
        started = time.process_time()
        prepared_path = prepare(folder / "sa_000000.tar", folder / "prepared").path
        took = time.process_time() - started
        print(f"prepare: {arguments.images / took:.1f} images/s and core, Beam's start included")
        prepared = PreparedSource(prepared_path, "train")
        examples = [tar[i] for i in range(len(tar))]
        position = iter(range(10**9))
        print(f"record from tar:      {1e3 * seconds(lambda _: tar[next(position) % len(tar)], examples):6.1f} ms")
        print(f"record from prepared: {1e3 * seconds(lambda _: prepared[next(position) % len(tar)], examples):6.1f} ms")
        print(f"image decoded:      {1e3 * seconds(lambda e: e.pil_image(), examples):6.1f} ms")
        for size in LOSS_SIZES:
            for label, augment, scale in (("fitted", False, (1.0, 1.0)), ("jitter", True, (0.1, 2.0))):
                config = DataConfig(batch_size=1, scale_range=scale, workers=1)
                rng = np.random.default_rng(0)

                def whole(e: Example, c: DataConfig = config, r=rng, s: int = size, a: bool = augment) -> object:
                    return prepare_example(e, r, VIT_B.image_size, c, s, a)

                took = seconds(whole, examples)
                print(f"loss {size:4d}, {label}: one example {1e3 * took:6.1f} ms, {1 / took:5.1f} images/s")

            def masks_of(e: Example, s: int = size) -> None:
                for rle in e.masks[:64]:
                    resample_runs(counts_from_rle(rle), (H, W), (0, 0), W / s, (round(H * s / W), s))

            print(f"loss {size:4d}: 64 masks from run lengths {1e3 * seconds(masks_of, examples):6.1f} ms")
            for label, source in (("tar", tar), ("prepared", prepared)):
                config = DataConfig(batch_size=4, workers=1)
                loader = make_loader(source, model=VIT_B, config=config, loss_size=size, seed=0)
                next(loader)
                started = time.process_time()
                for _ in range(8):
                    next(loader)
                rate = 32 / (time.process_time() - started)
                print(f"loss {size:4d}: loader from {label}, batches of 4: {rate:5.1f} images/s and core")


if __name__ == "__main__":
    main()
