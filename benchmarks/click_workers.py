"""What judging masks costs on the host: one after the other, in threads, in processes. click_workers.py [--side N]

A judgement is the IoU of a mask and the next click, two distance transforms. Processes get the masks by pickle.
"""

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import cv2
import numpy as np

from sam_jax.evals.clicks import inscribed_radius, next_click
from sam_jax.evals.metrics import mask_iou


def judge(ground_truth: np.ndarray, mask: np.ndarray) -> tuple:
    return mask_iou(mask, ground_truth), next_click(ground_truth, mask, [])


def judge_whole(ground_truth: np.ndarray, mask: np.ndarray) -> tuple:
    """With distance transforms of the whole image, for comparison."""
    missed, wrong = inscribed_radius(ground_truth & ~mask), inscribed_radius(mask & ~ground_truth)
    return mask_iou(mask, ground_truth), missed.max() > wrong.max()


def blobs(count: int, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        mask = np.zeros(size, np.uint8)
        axes = (rng.uniform(0.02, 0.2, 2) * size).astype(int)[::-1]
        centre = (rng.uniform(0.2, 0.8, 2) * size).astype(int)[::-1]
        cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        masks.append(mask > 0)
    return masks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1500, help="longer side of the image, pixels")
    parser.add_argument("--masks", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)  # what is compared is the work of these workers
    size = (options.side * 2 // 3, options.side)
    ground_truths = blobs(options.masks, size, 0)
    masks = [np.roll(ground_truth, (9, 14), (0, 1)) for ground_truth in ground_truths]
    threads = ThreadPoolExecutor(options.workers)
    processes = ProcessPoolExecutor(options.workers, get_context("spawn"))
    ways = {
        "one after the other, whole images": partial(map, judge_whole),
        "one after the other": partial(map, judge),
        f"{options.workers} threads": partial(threads.map, judge),
        f"{options.workers} processes": partial(processes.map, judge, chunksize=4),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            list(way(ground_truths, masks))
            times[name].append(time.perf_counter() - start)
    threads.shutdown()
    processes.shutdown()
    for name, seconds in times.items():
        print(f"{name:36} {1000 * statistics.median(seconds[1:]) / options.masks:6.2f} ms a mask")
