"""Seconds to score saved proposals, beside plain pycocotools: mask_scoring.py ANNOTATIONS FOLDER.

FOLDER holds the ID.json of an evaluation of proposals (out/METHOD-HASH). Both are given run lengths that are read
already, and compute AR@10, 100 and 1000 of all, small, medium and large objects, in one process; they must agree.
"""

import contextlib
import io
import sys
import time
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.evals.mask_scores import AREA_RANGES, RecallCounts, count_found, match_results
from sam_jax.evals.result_files import read_image_results

NUMBERS = (10, 100, 1000)

if __name__ == "__main__":
    ground_truth = read_ground_truth(Path(sys.argv[1]))
    files = {int(path.stem): path for path in Path(sys.argv[2]).glob("*.json")}
    images = [image for image in ground_truth.images.values() if image.id in files]
    objects = {image.id: image.objects() for image in images}
    proposals = {image.id: read_image_results(files[image.id]) for image in images}
    counts = [sum(map(len, rows.values())) for rows in (objects, proposals)]
    print(f"{len(images)} images, {counts[0]} objects, {counts[1]} masks")
    match_results(np.zeros((1, 1)), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool))  # compiles

    start = time.process_time()
    parts = [count_found(objects[id_], proposals[id_], {}, NUMBERS) for id_ in objects]
    recall = RecallCounts.sum(parts, NUMBERS)
    ours = time.process_time() - start

    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image.id, "height": image.size[0], "width": image.size[1]} for image in images],
            "annotations": [{"image_id": id_} | o for id_, rows in objects.items() for o in rows],
            "categories": [{"id": id_} for id_ in ground_truth.categories],
        }
        coco.createIndex()
        results = [{"image_id": id_, "category_id": 1} | r for id_, rows in proposals.items() for r in rows]
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.params.useCats, evaluation.params.maxDets = 0, list(NUMBERS)
        evaluation.evaluate()
        evaluation.accumulate()
    theirs = time.process_time() - start
    for i, area in enumerate(AREA_RANGES):
        expected = evaluation.eval["recall"][:, 0, i].mean(0)
        np.testing.assert_allclose(list(recall.average(area).values()), expected, rtol=1e-12)
    print(
        f"CPU seconds: ours {ours:.2f}, pycocotools {theirs:.2f}; the same figures, AR@1000 {expected[-1]:.4f} (large)"
    )
