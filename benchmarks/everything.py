"""Times everything mode on this machine's CPU against the official code, and measures the memory that each needs.

    python benchmarks/everything.py --official FOLDER --image PICTURE [--rounds 3] [--out times.json]

Both get a process of their own and take turns: the same image, ViT-B with the same random weights in float32, all
cores, a grid of 32 x 32 points, 64 at a time, run lengths as the output. Random weights are sure of nothing: their
confidence is raised above 0, half of the masks pass its filter, and half of those the one of the stability.
Memory is the peak resident set of the process, weights and libraries included; the first image of each, which
compiles, is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers import Worker, serve


def runner(name: str, options: argparse.Namespace) -> Callable[[str], dict[str, float]]:
    """JSON of settings -> seconds for the image, masks that were found, peak memory in GiB so far."""
    from official import official_model, random_params, use_official

    from sam_jax.config import VIT_B
    from sam_jax.data.images import read_image

    image, params = read_image(options.image), random_params(VIT_B)
    params["mask_decoder"]["iou_prediction_head"]["layers_2"]["bias"] += 0.5
    generator_class: Any
    if name == "sam_jax":
        from sam_jax import Sam
        from sam_jax import SamAutomaticMaskGenerator as generator_class

        model: Any = Sam(VIT_B, params)
    else:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        use_official(options.official)
        from segment_anything import (  # pyright: ignore[reportMissingImports]
            SamAutomaticMaskGenerator as generator_class,
        )

        model = official_model(params, VIT_B)
    del params

    def run(task: str) -> dict[str, Any]:
        settings = json.loads(task)
        start = time.perf_counter()
        records = generator_class(model, **settings, output_mode="uncompressed_rle").generate(image)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        scores = {score: [record[score] for record in records] for score in ("predicted_iou", "stability_score")}
        return {"seconds": seconds, "masks": len(records), "peak": peak} | scores

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="folder that holds segment_anything/")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(runner(options.serve, options))

    def worker(name: str) -> Worker:
        paths = ["--official", str(options.official), "--image", str(options.image)]
        return Worker(name, [sys.executable, __file__, "--serve", name, *paths])

    scout = worker("sam_jax")
    settings = {"stability_score_offset": 0.1}
    unfiltered = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    found = scout.ask(json.dumps(settings | unfiltered | {"points_per_side": 8}))
    scout.end()
    lowest_iou = statistics.median(found["predicted_iou"])
    passing = zip(found["predicted_iou"], found["stability_score"], strict=True)
    settings |= {
        "points_per_side": options.points_per_side,
        "pred_iou_thresh": lowest_iou,
        "stability_score_thresh": statistics.median(stability for iou, stability in passing if iou > lowest_iou),
    }
    workers = [worker("sam_jax"), worker("official")]
    results: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    for i in range(options.rounds + 1):
        for each in workers:
            results[each.name].append(each.ask(json.dumps(settings)))
            print(
                f"round {i} of {options.rounds}: {each.name} {results[each.name][-1]['seconds']:.1f} s", file=sys.stderr
            )
    for each in workers:
        each.end()

    print(f"{options.image.name}, ViT-B, float32, {os.cpu_count()} cores, {settings}\n")
    print("| | sam_jax | official | ratio |\n|---|---|---|---|")
    seconds, peaks, masks = (
        [measure([result[field] for result in results[each.name][1:]]) for each in workers]
        for field, measure in (("seconds", statistics.median), ("peak", max), ("masks", max))
    )
    print(f"| seconds per image, median | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[0] / seconds[1]:.2f} |")
    print(f"| peak memory, GiB | {peaks[0]:.2f} | {peaks[1]:.2f} | {peaks[0] / peaks[1]:.2f} |")
    print(f"| masks found | {masks[0]} | {masks[1]} | |")
    if options.out:
        options.out.write_text(json.dumps({"settings": settings} | results, indent=1))


if __name__ == "__main__":
    main()
