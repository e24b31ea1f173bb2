"""Average precision and recall of masks: pycocotools' `COCOeval`, also with LVIS's rules, one image at a time.

pycocotools compares RLE masks and accumulates precision. The matching in between, Python loops over results, objects
and thresholds that take nearly all of its time, is compiled by numba here. Images are independent up to accumulation,
so that worker processes can match them, and only a few bits per result are kept of each.

Reference: Lin et al. 2014; Gupta et al. 2019, with the rules of the `lvis` package (which does not run with numpy 2):
results of categories that were not verified for an image do not count, and no result is a false positive in a category
that is not annotated exhaustively. The area of a result is that of its mask, as in detectron2; both packages use the
area of its `bbox` if it has one.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools.cocoeval import COCOeval

from sam_jax.errors import MissingPackage
from sam_jax.evals.ground_truth import ANY_CATEGORY, FREQUENCIES, AnnotatedObject
from sam_jax.evals.intervals import Interval, draw_images, mean_interval, percentile_interval
from sam_jax.ops.rle import rle_area

try:
    import numba
except ImportError as error:
    raise MissingPackage("scoring masks needs numba: pip install 'sam_jax[eval]'") from error

Result = dict[str, Any]
"""One predicted mask: `segmentation` (RLE), `score`, and `category_id` unless evaluation is class-agnostic."""
Matches = dict[Any, list[dict[str, Any]]]
"""The matches of one image: for each category and each area range, what `COCOeval.accumulate` takes."""

AREA_RANGES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels
RECALLS = np.linspace(0, 1, 101)  # where COCO takes the precision


class MaskEval(COCOeval):
    """`COCOeval` for masks with compiled matching.

    Args:
        max_detections: COCO's maxDets: numbers of best results per image and category that are evaluated.
        not_exhaustive_categories: categories whose unmatched results are ignored.
    """

    def __init__(self, max_detections: Sequence[int], not_exhaustive_categories: Iterable[int] = ()) -> None:
        super().__init__(iouType="segm")
        self.params.maxDets = sorted(max_detections)
        self.params.areaRng = [list(limits) for limits in AREA_RANGES.values()]
        self.params.areaRngLbl = list(AREA_RANGES)
        self._not_exhaustive = frozenset(not_exhaustive_categories)

    def match(self, objects: Sequence[AnnotatedObject], results: Sequence[Result]) -> Matches:
        """Matches the results of one image, category by category."""
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        for i, object_ in enumerate(objects, start=1):  # to pycocotools an id of 0 means no match
            self._gts[0, object_["category_id"]].append(object_ | {"id": i, "ignore": object_["iscrowd"]})
        for i, result in enumerate(results, start=1):
            self._dts[0, result["category_id"]].append(result | {"id": i, "area": rle_area(result["segmentation"])})
        categories = list(dict.fromkeys(category for _, category in [*self._gts, *self._dts]))
        self.ious = {(0, category): self.computeIoU(0, category) for category in categories}
        most = self.params.maxDets[-1]
        return {
            category: [self.evaluateImg(0, category, limits, most) for limits in self.params.areaRng]
            for category in categories
        }

    def evaluateImg(self, imgId: Any, catId: Any, aRng: Sequence[float], maxDet: int) -> dict[str, Any]:
        """Matches one category and area range as the original does; returns only what `accumulate` needs."""
        ground_truths, results = self._gts[imgId, catId], self._dts[imgId, catId]
        ignored = np.array([bool(g["ignore"]) or not aRng[0] <= g["area"] <= aRng[1] for g in ground_truths], bool)
        order = np.argsort(ignored, kind="stable")
        scores = np.array([d["score"] for d in results], np.float64)
        best = np.argsort(-scores, kind="stable")[:maxDet]
        ious = np.asarray(self.ious[imgId, catId], np.float64).reshape(len(best), len(ground_truths))[:, order]
        ignored = ignored[order]
        crowd = np.array([bool(g["iscrowd"]) for g in ground_truths], bool)[order]
        matched = match_results(ious, np.asarray(self.params.iouThrs), ignored, crowd)
        found = matched >= 0
        areas = np.array([results[i]["area"] for i in best], np.float64)
        uncounted = (areas < aRng[0]) | (areas > aRng[1]) | (catId in self._not_exhaustive)
        return {
            "dtScores": scores[best],
            "dtMatches": found,
            "dtIgnore": np.where(found, np.append(ignored, False)[matched], uncounted[None]),
            "gtIgnore": ignored,
        }

    def precision_and_recall(
        self, gt_images: Sequence[Matches], category: Any
    ) -> tuple[Float[np.ndarray, "T R A N"], Float[np.ndarray, "T A N"]]:
        """Accumulates one category with `COCOeval.accumulate`.

        Returns:
            Precision by IoU threshold, recall, area range and number of results; and recall by IoU threshold, area
            range and number of results. -1 where there is no object.
        """
        present = [gt_image[category] for gt_image in gt_images if category in gt_image]
        self.params.catIds, self.params.imgIds = [category], list(range(len(present)))
        self.evalImgs = [one[area] for area in range(len(AREA_RANGES)) for one in present]
        self._paramsEval = copy.deepcopy(self.params)
        with contextlib.redirect_stdout(io.StringIO()):
            self.accumulate()
        return self.eval["precision"][:, :, 0], self.eval["recall"][:, 0]


@numba.njit(nogil=True, cache=True)
def match_results(
    ious: Float[np.ndarray, "D G"],
    thresholds: Float[np.ndarray, " T"],
    ignored: Bool[np.ndarray, " G"],
    crowd: Bool[np.ndarray, " G"],
) -> Int[np.ndarray, "T D"]:
    """Matches greedily like COCO: each result, best first, gets the unmatched object with the highest IoU.

    Args:
        ious: IoU of results, sorted by score, with objects, ignored objects last.
        thresholds: lowest IoU of a match.
        ignored: objects that are matched only if no other object can be.
        crowd: objects that can be matched more than once.

    Returns:
        The index of the object that each result is matched with at each threshold; -1 means none.
    """
    D, G = ious.shape
    matched = np.full((len(thresholds), D), -1)
    for t in range(len(thresholds)):
        taken = np.zeros(G, np.bool_)
        for d in range(D):
            best, least = -1, min(thresholds[t], 1 - 1e-10)
            for g in range(G):
                if taken[g] and not crowd[g]:
                    continue
                if best >= 0 and ignored[g] and not ignored[best]:
                    break
                if ious[d, g] >= least:
                    best, least = g, ious[d, g]
            if best >= 0:
                matched[t, d] = best
                taken[best] = True
    return matched


class RecallCounts(NamedTuple):
    """Counts of objects, and of objects found at each IoU threshold by the n best proposals, n in `max_detections`.

    Counts are per subset of the objects (by area, by category frequency) and of one image or summed over images. A
    subset without objects may be missing.
    """

    max_detections: tuple[int, ...]
    objects: dict[str, int]
    found: dict[str, Int[np.ndarray, "T N"]]

    @classmethod
    def sum(cls, counts: Sequence[RecallCounts], max_detections: Sequence[int]) -> RecallCounts:
        objects: dict[str, int] = defaultdict(int)
        found: dict[str, Any] = defaultdict(int)
        for one in counts:
            for name, count in one.objects.items():
                objects[name] += count
                found[name] = found[name] + one.found[name]
        return cls(tuple(max_detections), dict(objects), dict(found))

    def average(self, name: str) -> dict[str, float | None]:
        """Returns AR@n of a subset: its recall averaged over IoU thresholds, 0-1; None if it has no object."""
        count = self.objects.get(name, 0)
        means = (self.found[name] / count).mean(0).tolist() if count else [None] * len(self.max_detections)
        return {f"AR@{n}": mean for n, mean in zip(self.max_detections, means, strict=True)}


def recall_interval(counts: Sequence[RecallCounts], name: str, most: int) -> Interval | None:
    """Returns the 95 % interval of AR@`most` of a subset, from the counts of each image; None if it has no object."""
    objects = [one.objects.get(name, 0) for one in counts]
    found = [one.found[name].mean(0)[one.max_detections.index(most)] if name in one.found else 0.0 for one in counts]
    return mean_interval(found, objects)


def count_found(
    objects: Sequence[AnnotatedObject],
    proposals: Sequence[Result],
    frequencies: Mapping[int, str],
    max_detections: Sequence[int] = (10, 100, 1000),
) -> RecallCounts:
    """Counts the objects of one image that class-agnostic proposals find, by area and by LVIS category frequency.

    Crowds are ignored. For each frequency, objects of categories with another frequency are treated as absent.
    """
    evaluator = MaskEval(max_detections)
    agnostic = [proposal | {"category_id": ANY_CATEGORY} for proposal in proposals]
    counted, found = {}, {}

    def count(name: str, matched: dict[str, np.ndarray]) -> None:
        counted[name] = int((~matched["gtIgnore"]).sum())
        right = matched["dtMatches"] & ~matched["dtIgnore"]
        found[name] = np.stack([right[:, :n].sum(1) for n in evaluator.params.maxDets], axis=1)

    ground_truths = [o | {"category_id": ANY_CATEGORY} for o in objects]
    if ground_truths:
        for area, matched in zip(AREA_RANGES, evaluator.match(ground_truths, agnostic)[ANY_CATEGORY], strict=True):
            count(area, matched)
    for letter, name in FREQUENCIES.items() if frequencies else ():
        subset = [t for t, o in zip(ground_truths, objects, strict=True) if frequencies[o["category_id"]] == letter]
        if subset:
            count(name, evaluator.match(subset, agnostic)[ANY_CATEGORY][0])
    return RecallCounts(tuple(evaluator.params.maxDets), counted, found)


def average_precision(
    gt_images: Sequence[Matches],
    categories: Iterable[int],
    frequencies: Mapping[int, str],
    max_detections: Sequence[int],
) -> dict[str, float | None]:
    """Computes COCO's metrics from the matches of all images, and LVIS's if `frequencies` are given.

    Args:
        max_detections: as for `MaskEval`; AP is computed with the largest number.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR@N for each N of `max_detections`, and with `frequencies` APr, APc, APf: each
        0-1, or None where there is no object.
    """
    evaluator = MaskEval(max_detections)
    ids = sorted(categories)
    precision, recall = (
        np.stack(parts) for parts in zip(*(evaluator.precision_and_recall(gt_images, id_) for id_ in ids), strict=True)
    )
    precision = precision[..., -1]  # (categories, thresholds, recalls, areas)
    figures = {"AP": precision[..., 0], "AP50": precision[:, 0, :, 0], "AP75": precision[:, 5, :, 0]}
    figures |= {f"AP{name[0]}": precision[..., i] for i, name in enumerate(AREA_RANGES) if i}
    for letter in "rcf" if frequencies else "":
        figures[f"AP{letter}"] = precision[[frequencies[id_] == letter for id_ in ids]][..., 0]
    figures |= {f"AR@{n}": recall[..., 0, i] for i, n in enumerate(evaluator.params.maxDets)}
    present = {name: values[values > -1] for name, values in figures.items()}
    return {name: float(values.mean()) if len(values) else None for name, values in present.items()}


def average_precision_interval(gt_images: Sequence[Matches], categories: Iterable[int]) -> Interval | None:
    """Returns the 95 % interval of the AP of `average_precision`; None if there is no object."""
    draws = draw_images(len(gt_images))
    total, present = np.zeros(len(draws)), np.zeros(len(draws))
    for category in categories:
        members = [i for i, gt_image in enumerate(gt_images) if category in gt_image]
        if not members:
            continue
        of_all_areas = [gt_images[i][category][0] for i in members]
        objects = draws[:, members] @ [np.count_nonzero(~one["gtIgnore"]) for one in of_all_areas]
        scores = np.concatenate([one["dtScores"] for one in of_all_areas])
        order = np.argsort(-scores, kind="stable")
        image = np.repeat(members, [len(one["dtScores"]) for one in of_all_areas])[order]
        matched, ignored = (
            np.concatenate([one[field] for one in of_all_areas], axis=1)[:, order]
            for field in ("dtMatches", "dtIgnore")
        )
        right, wrong = matched & ~ignored, ~matched & ~ignored
        total += mean_precisions(draws, image, right, wrong, objects, RECALLS)
        present += objects > 0
    return percentile_interval(np.divide(total, present, out=np.full(len(draws), np.nan), where=present > 0))


@numba.njit(nogil=True, cache=True)
def mean_precisions(
    draws: Int[np.ndarray, "R N"],
    image: Int[np.ndarray, " D"],
    right: Bool[np.ndarray, "T D"],
    wrong: Bool[np.ndarray, "T D"],
    objects: Int[np.ndarray, " R"],
    recalls: Float[np.ndarray, " K"],
) -> Float[np.ndarray, " R"]:
    """Computes the AP of one category for samples of the images, as `COCOeval.accumulate` does for the images.

    Args:
        draws: how often each image is in each sample.
        image: the image of each result; results are sorted by score, best first.
        right: whether a result is a true positive at each IoU threshold.
        wrong: whether it is a false positive.
        objects: number of objects in each sample.
        recalls: where the precision is taken.

    Returns:
        The AP of each sample, 0-1; 0 without an object.
    """
    R, (T, D) = len(draws), right.shape
    found = np.zeros(R)
    precision, recall = np.zeros(D), np.zeros(D)
    for r in range(R):
        if not objects[r]:
            continue
        for t in range(T):
            true = false = 0
            for d in range(D):
                times = draws[r, image[d]]
                true += times * right[t, d]
                false += times * wrong[t, d]
                recall[d] = true / objects[r]
                precision[d] = true / max(true + false, 1)
            for d in range(D - 2, -1, -1):
                precision[d] = max(precision[d], precision[d + 1])
            d = 0
            for least in recalls:
                while d < D and recall[d] < least:
                    d += 1
                if d == D:
                    break
                found[r] += precision[d]
    return found / (T * len(recalls))
