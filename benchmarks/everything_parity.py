"""Everything mode against the official code: the same masks, with the same scores, from the same weights?

    python benchmarks/everything_parity.py --official FOLDER --images PICTURE ...
    python benchmarks/everything_parity.py ... --model random:vit_b --nms-thresh 1 --points-per-side 16

--official is a checkout of github.com/facebookresearch/segment-anything. --model is the tests' trained one, another
checkpoint, or random:NAME for random weights of that size. As the scores of such models are not those of a finished
one, thresholds are taken from the scores at hand: half of the masks pass each filter, or more where scores are below 0.
Exits with an error when a mask of one side has no partner of IoU 0.99 on the other, or scores differ by more than 1e-3.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from official import official_model, random_params, use_official

from sam_jax.checkpoints.hub import load_model
from sam_jax.config import SIZES
from sam_jax.data.images import read_image
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.model import Sam

TRAINED = Path(__file__).parent.parent / "tests/data/tiny.safetensors"
SAME_IOU, SAME_SCORE = 0.99, 1e-3

CASES: dict[str, dict[str, Any]] = {
    "no crops": {},
    "small regions removed": {"min_mask_region_area": 100},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "two layers, small regions removed": {
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
}


def load(name: str) -> Sam:
    if name.startswith("random:"):
        config = SIZES[name.removeprefix("random:")]
        return Sam(config, random_params(config))
    return load_model(name)


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Each mask's partner is the one of highest IoU that was asked with the same point."""
    iou = np.zeros((len(ours), len(theirs)))
    if ours and theirs:
        masks, their_masks = ([record["segmentation"] for record in records] for records in (ours, theirs))
        iou = pycocotools.mask.iou(masks, their_masks, [0] * len(theirs))
        points, their_points = (np.array([r["point_coords"][0] for r in records]) for records in (ours, theirs))
        iou[np.abs(points[:, None] - their_points).max(-1) > 1e-6] = 0
    best, back = (iou.argmax(axis) if iou.size else np.zeros(0, int) for axis in (1, 0))
    pairs = [(i, j) for i, j in enumerate(best) if back[j] == i and iou[i, j] >= SAME_IOU]
    score_error = max(
        (abs(ours[i][name] - theirs[j][name]) for i, j in pairs for name in ("predicted_iou", "stability_score")),
        default=0.0,
    )
    same_fields = all(ours[i][name] == theirs[j][name] for i, j in pairs for name in ("crop_box", "point_coords"))
    return {
        "ours": len(ours),
        "theirs": len(theirs),
        "pairs": len(pairs),
        "worst_iou": min((iou[i, j] for i, j in pairs), default=1.0),
        "pixels": sum(abs(ours[i]["area"] - theirs[j]["area"]) for i, j in pairs),
        "box": max((np.abs(np.subtract(ours[i]["bbox"], theirs[j]["bbox"])).max() for i, j in pairs), default=0),
        "score": score_error,
        "in_order": pairs == [(i, i) for i in range(len(theirs))],
        "same_fields": same_fields,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="folder that contains segment_anything")
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default=str(TRAINED))
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--nms-thresh", type=float, default=0.7, help="1 keeps random weights' near duplicates")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()

    model = load(arguments.model)
    use_official(arguments.official)
    from segment_anything import SamAutomaticMaskGenerator as Official  # pyright: ignore[reportMissingImports]

    reference = official_model(model.params, model.config)
    print("| image | case | masks | official | pairs | lowest IoU | areas, sum | box | scores | order |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    lost = 0
    for path in arguments.images:
        image = read_image(path)
        everything = SamAutomaticMaskGenerator(
            model,
            points_per_side=8,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.0,
            box_nms_thresh=1.0,
            output_mode="coco_rle",
        ).generate(image)
        settings = {
            "points_per_side": arguments.points_per_side,
            "pred_iou_thresh": max(0.0, float(np.median([record["predicted_iou"] for record in everything]))),
            "stability_score_thresh": float(np.median([record["stability_score"] for record in everything])),
            "box_nms_thresh": arguments.nms_thresh,
            "crop_nms_thresh": arguments.nms_thresh,
            "output_mode": "coco_rle",
        }
        for name in arguments.cases:
            ours = SamAutomaticMaskGenerator(model, **settings, **CASES[name]).generate(image)
            theirs = Official(reference, **settings, **CASES[name]).generate(image)
            r = compare(ours, theirs)
            lost += r["pairs"] < max(len(ours), len(theirs)) or r["score"] > SAME_SCORE or not r["same_fields"]
            print(
                f"| {path.name}, {image.shape[1]} x {image.shape[0]} | {name} | {r['ours']} | {r['theirs']} "
                f"| {r['pairs']} | {r['worst_iou']:.5f} | {r['pixels']} | {r['box']} | {r['score']:.1e} "
                f"| {'same' if r['in_order'] else 'differs'} |",
                flush=True,
            )
    if lost:
        sys.exit(f"parity is lost in {lost} cases")


if __name__ == "__main__":
    main()
