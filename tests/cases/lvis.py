"""A small data set with LVIS's fields and results on it, and what the `lvis` package says of them.

cd tests; python -m cases.lvis FOLDER    # with lvis 0.5.3 in it: records data/lvis_official.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.ops.rle import coco_bbox, encode_rle

RECORDED = Path(__file__).parents[1] / "data" / "lvis_official.json"
SIZE = (120, 150)  # (h, w): room for small, medium and large objects


def ellipse(rng: np.random.Generator, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    centre, radii = centre + rng.normal(0, 0.08, 2) * radii, radii * rng.uniform(0.85, 1.15, 2)
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1


def write_case(folder: Path, num_images: int = 12, seed: int = 0) -> tuple[Path, Path]:
    """Writes annotations and results: objects of 6 categories, found roughly, twice, in a wrong category or not."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 3 * i + 1, "name": f"c{i}", "frequency": "rccfff"[i]} for i in range(6)]
    ids = [category["id"] for category in categories]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(10, 10 + num_images):
        present = rng.choice(ids, 3, replace=False).tolist()
        images.append(
            {
                "id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "coco_url": f"http://images.example/val2017/{image_id:012}.jpg",
                "neg_category_ids": [i for i in ids if i not in present][:2],
                "not_exhaustive_category_ids": present[:1],
            }
        )
        for _ in range(rng.integers(2, 8)):
            category = int(rng.choice(present))
            centre = rng.uniform((20, 20), (SIZE[1] - 20, SIZE[0] - 20))
            radii = rng.choice([8, 20, 60]) * rng.uniform(0.7, 1.3, 2)
            rle = encode_rle(ellipse(rng, centre, radii))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": rle,
                    "bbox": coco_bbox(rle),
                    "area": int(ellipse(rng, centre, radii).sum()),  # a file's areas need not be its masks'
                }
            )
            for _ in range(rng.integers(0, 4)):
                wrong = rng.random() < 0.2
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": int(rng.choice(ids)) if wrong else category,
                        # Without bbox: with it both packages take the box's area for the mask's.
                        "segmentation": encode_rle(ellipse(rng, centre, radii)),
                        "score": round(float(rng.random()), 2),  # some are equal
                    }
                )
    ground_truth, found_file = folder / "annotations.json", folder / "results.json"
    ground_truth.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    found_file.write_text(json.dumps(results))
    return ground_truth, found_file


def record(packages: Path) -> None:
    import tempfile

    sys.path.insert(0, str(packages))
    setattr(np, "float", float)  # noqa: B010  # lvis 0.5.3 still asks for it
    from lvis import LVISEval

    recorded = []
    for seed in range(4):
        with tempfile.TemporaryDirectory() as folder:
            ground_truth, results = write_case(Path(folder), seed=seed)
            evaluation = LVISEval(str(ground_truth), str(results), "segm")
            evaluation.run()
            recorded.append({name: float(value) for name, value in evaluation.get_results().items()})
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
