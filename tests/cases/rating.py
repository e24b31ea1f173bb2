"""A ground truth with images and the masks of two models, for the tests of the human study."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from cases.lvis import SIZE, write_case
from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.evals.rating.study import Study, sample_study, write_study
from sam_jax.ops.rle import encode_rle


def write_data(folder: Path) -> Path:
    """Writes annotations.json, images; a.json with the whole image for every annotated box, b.json for all but one."""
    ground_truth_file, _ = write_case(folder, num_images=4, seed=2)
    (folder / "images").mkdir()
    content = json.loads(ground_truth_file.read_text())
    for picture in content["images"]:
        Image.new("RGB", SIZE[::-1], (90, 120, 60)).save(folder / "images" / picture["coco_url"].split("/")[-1])
    full = encode_rle(np.ones(SIZE, bool))
    rows = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "score": 0.5,
            "prompt_bbox": a["bbox"],
            "segmentation": full,
        }
        for a in content["annotations"]
    ]
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "b.json").write_text(json.dumps(rows[1:]))
    return folder


def sources(data: Path) -> dict[str, Path]:
    return {"model <b>a</b>": data / "a.json", "b": data / "b.json", "truth": data / "annotations.json"}


def make_study(data: Path) -> Study:
    """Makes a study of 4 objects and 12 masks."""
    ground_truth = read_ground_truth(data / "annotations.json")
    write_study(data / "study", sample_study(ground_truth, sources(data), masks=4, seed=0))
    return Study(data / "study")
