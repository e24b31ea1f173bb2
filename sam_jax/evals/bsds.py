"""The boundary benchmark of BSDS500, which compares soft edge maps with boundaries drawn by several annotators.

Reference: Arbelaez, Maire, Fowlkes, Malik 2011, and its `boundaryBench`; R50 as in the edges toolbox of Dollar.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Bool, Float, Int
from PIL import Image

from sam_jax.errors import EXPECTED_ERRORS, MissingFile, UserError
from sam_jax.evals.boundaries import match_boundaries, thin
from sam_jax.evals.image_runs import Failures, refuse_nothing
from sam_jax.evals.intervals import Interval, draw_images, percentile_interval
from sam_jax.files import make_folder, read_bytes, read_json, write_atomically
from sam_jax.parallel.gather import shard_by_process, sync_processes
from sam_jax.progress import ProgressBar

THRESHOLDS = np.arange(1, 100) / 100
MAX_DISTANCE = 0.0075  # between matched pixels, as a fraction of the image diagonal
SOURCE = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"


def read_boundaries(path: Path) -> Bool[np.ndarray, "A H W"]:
    """Reads the boundaries drawn by each of A annotators.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is not a BSDS500 .mat file.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        annotators = scipy.io.loadmat(content)["groundTruth"][0]
        return np.stack([annotator["Boundaries"][0, 0] for annotator in annotators]).astype(bool)
    except Exception as error:  # of SciPy's reader, or of other fields
        raise UserError(f"expected BSDS500 ground truth (groundTruth, with Boundaries) in {path}: {error}") from error


def find_ground_truth(root: Path, split: str) -> dict[str, Path]:
    """Returns the path of the ground-truth .mat file of each image id of a split.

    Raises:
        MissingFile: BSDS500 is not there.
    """
    folder = root / "groundTruth" / split
    found = {path.stem: path for path in sorted(folder.glob("*.mat"))}
    if not found:
        raise MissingFile(
            f"expected BSDS500 ground truth in {folder.resolve()}, found none. Get BSDS500 from {SOURCE} and put its "
            "folders data/images and data/groundTruth there, or say where it is with --data"
        )
    return found


def read_edge_map(path: Path) -> Float[np.ndarray, "H W"]:
    """Reads a soft edge map from a greyscale PNG of 1, 8 or 16 bits and scales it to 0-1.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is not a greyscale image.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        with Image.open(content) as file:
            mode, values = file.mode, np.asarray(file)
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise UserError(f"expected an edge map, cannot read {path}: {error}") from error
    largest = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535}.get(mode)
    if largest is None:
        raise UserError(f"expected a grey edge map of 1, 8 or 16 bits, {path} has mode {mode}")
    return values / largest


def find_edge_maps(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Returns the path of the PNG edge map of each id, from anywhere below a folder.

    Raises:
        MissingFile: the folder does not exist.
        UserError: an id has no map, or has two.
    """
    if not folder.is_dir():
        raise MissingFile(f"expected a folder of edge maps, found none at {folder.resolve()}")
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png"):
        other = found.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"expected one map for {path.stem}, got {other} and {path}")
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise UserError(
            f"expected a map ID.png for each of {len(ids)} images in {folder}, {len(missing)} are missing: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        )
    return {id_: found[id_] for id_ in ids}


def count_matches(
    edges: Float[np.ndarray, "H W"], ground_truths: Bool[np.ndarray, "A H W"], thresholds: np.ndarray = THRESHOLDS
) -> Int[np.ndarray, "K 4"]:
    """Counts the matched pixels of one image at each threshold.

    The map is thresholded (>=), thinned, and matched with the boundaries of each annotator.

    Returns:
        The columns of the original's files: matched pixels of the ground truth, summed over annotators; all its pixels;
        pixels of the thinned map that are matched with any annotator; all its pixels.

    Raises:
        UserError: the map has another size than the ground truth, or values outside of [0, 1].
    """
    if edges.shape != ground_truths.shape[1:]:
        raise UserError(
            f"expected an edge map of the ground truth's size {ground_truths.shape[1:]} (h, w), got {edges.shape}"
        )
    if not ((edges >= 0) & (edges <= 1)).all():  # NaN is caught too
        raise UserError(f"expected an edge map of values in [0, 1], got {np.min(edges)} to {np.max(edges)}")
    order = np.argsort(-thresholds)  # the matching is fast if each map contains the one before
    maps = thin(edges >= thresholds[order, None, None])
    matched = np.zeros_like(maps)
    gt_matched = np.zeros(len(maps), int)
    for ground_truth in ground_truths:
        found = match_boundaries(maps, ground_truth, MAX_DISTANCE * float(np.hypot(*ground_truth.shape)))
        gt_matched += found.sum((1, 2))
        matched |= found
    counts = np.empty((len(maps), 4), np.int64)
    counts[order] = np.stack(
        [gt_matched, np.full(len(maps), ground_truths.sum()), matched.sum((1, 2)), maps.sum((1, 2))], axis=1
    )
    return counts


def count_human_matches(ground_truths: Bool[np.ndarray, "A H W"]) -> Int[np.ndarray, "1 4"]:
    """Sums `count_matches` of each annotator's boundaries against those of all others: human performance."""
    others = [np.delete(ground_truths, i, axis=0) for i in range(len(ground_truths))]
    one = np.array([0.5])
    return np.sum([count_matches(t.astype(float), o, one) for t, o in zip(ground_truths, others, strict=True)], axis=0)


class BoundaryScores(NamedTuple):
    """Scores of a set of images; the F-measure is the harmonic mean of precision and recall."""

    ods: float  # best F-measure with one threshold for all images (optimal dataset scale)
    threshold: float  # the threshold of `ods`
    precision: float  # precision at `threshold`
    recall: float  # recall at `threshold`
    ois: float  # F-measure with the best threshold of each image (optimal image scale)
    ap: float  # average precision
    r50: float  # recall at a precision of one half


def score_counts(counts: Int[np.ndarray, "N K 4"], thresholds: np.ndarray = THRESHOLDS) -> BoundaryScores:
    """Computes the scores of N images, with the definitions of the original benchmark.

    ODS: precision and recall of the summed counts are interpolated linearly in 100 steps between neighbouring
    thresholds. OIS: the F-measure of counts summed at the best threshold of each image (the lowest one of several,
    without interpolation), not a mean of F-measures. AP: the precision at the recalls 0, 0.01, ..., 1, interpolated
    linearly and 0 beyond the ends of the curve, summed and divided by 100, not by 101: at most 1.01. It is 0 for a
    curve with a single recall, such as that of a binary map. R50: the recall, interpolated linearly over precision, at
    a precision of 0.5, or at the lowest precision if that is higher; 0 if all precisions are lower.

    Args:
        counts: `count_matches` of each image.

    Raises:
        ValueError: `counts` is empty.
    """
    if not len(counts):
        raise ValueError("expected the counts of at least one image, got none")
    precision, recall = precision_recall(counts.sum(0))
    curves = [_interpolate(values) for values in (precision, recall, thresholds)]
    best = int(_f_measure(*curves[:2]).argmax())
    p_best, r_best, at = (curve[best] for curve in curves)
    ods = _f_measure(p_best, r_best)

    rows = [image[np.argmax(_f_measure(*precision_recall(image)))] for image in counts]
    ois = _f_measure(*precision_recall(np.sum(rows, axis=0)))

    recalls, first = np.unique(recall, return_index=True)
    at_recall = np.interp(np.linspace(0, 1, 101), recalls, precision[first], left=0, right=0)
    ap = at_recall.sum() / 100 if len(recalls) > 1 else 0.0
    precisions, first = np.unique(precision, return_index=True)
    r50 = np.interp(max(precisions[0], 0.5), precisions, recall[first], right=0)
    return BoundaryScores(*(float(x) for x in (ods, at, p_best, r_best, ois, ap, r50)))


def ods_interval(counts: Int[np.ndarray, "N K 4"]) -> Interval | None:
    """Returns the 95 % interval of ODS, whose threshold is chosen anew for each sample of the images."""
    resampled = []
    for draws in np.array_split(draw_images(len(counts)), 20):  # the curves of all samples would take half a gigabyte
        precision, recall = precision_recall(np.tensordot(draws, counts, 1))
        resampled.append(_f_measure(_interpolate(precision), _interpolate(recall)).max(-1))
    return percentile_interval(np.concatenate(resampled))


def _interpolate(values: Float[np.ndarray, "*R K"]) -> Float[np.ndarray, "*R P"]:
    """Interpolates values of neighbouring thresholds linearly, in 100 steps."""
    steps = np.linspace(0, 1, 100)
    between = values[..., 1:, None] * steps + values[..., :-1, None] * (1 - steps)
    return np.concatenate([values[..., :1], between.reshape(*values.shape[:-1], -1)], -1)


def precision_recall(counts: Int[np.ndarray, "*K 4"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns precision and recall from the columns of `count_matches`; 0 of 0 gives 0."""
    matched_gt, all_gt, matched_map, all_map = np.moveaxis(counts, -1, 0)
    return matched_map / np.maximum(all_map, 1), matched_gt / np.maximum(all_gt, 1)


def _f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def score_folder(
    maps: dict[str, Path],
    ground_truths: dict[str, Path],
    out: Path,
    failures: Failures,
    *,
    workers: int = 2,
    label: str = "scoring",
) -> Int[np.ndarray, "N K 4"]:
    """Scores edge maps in files with `count_matches`, several at a time.

    The counts of each image are kept in out/ID.json, from which an interrupted run resumes.

    Args:
        maps: PNG file of each id.
        ground_truths: .mat file of each id.
        failures: images of which the map or the ground truth cannot be used are added.

    Returns:
        The counts of each other image, in the order of `maps`.

    Raises:
        UserError: no image can be scored; names the first.
    """

    def count(id_: str) -> np.ndarray:
        return count_matches(read_edge_map(maps[id_]), read_boundaries(ground_truths[id_]))

    files = {id_: (maps[id_], ground_truths[id_]) for id_ in maps}
    return _each_image(files, count, out, failures, workers, label)


def score_humans(
    ground_truths: dict[str, Path], out: Path, failures: Failures, *, workers: int = 2, label: str = "human"
) -> Int[np.ndarray, "N 1 4"]:
    """Scores human performance with `count_human_matches`; counts are kept as `score_folder` keeps them."""

    def count(id_: str) -> np.ndarray:
        return count_human_matches(read_boundaries(ground_truths[id_]))

    files = {id_: (path,) for id_, path in ground_truths.items()}
    return _each_image(files, count, out, failures, workers, label)


def _each_image(
    files: Mapping[str, tuple[Path, ...]],
    count: Callable[[str], np.ndarray],
    out: Path,
    failures: Failures,
    workers: int,
    label: str,
) -> np.ndarray:
    """Returns the counts of each image: read from disk if they are of the same files, else computed in threads.

    Several processes that see the same folder divide the images among them.
    """
    make_folder(out)

    def count_or_read(id_: str) -> np.ndarray | str:
        """Returns the counts, or why there are none."""
        digest = hashlib.sha256()
        try:
            for path in files[id_]:
                digest.update(hashlib.sha256(read_bytes(path)).digest())
        except OSError as error:
            return str(error)
        kept = out / f"{id_}.json"
        if kept.exists():
            content = read_json(kept)
            if content["files"] == digest.hexdigest():
                return np.array(content["counts"])
        try:
            counts = count(id_)
        except EXPECTED_ERRORS as error:
            return str(error)
        write_atomically(kept, json.dumps({"files": digest.hexdigest(), "counts": counts.tolist()}))
        return counts

    mine = shard_by_process(files)
    with sync_processes(), ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            done = ProgressBar(pool.map(count_or_read, mine), total=len(mine), desc=label, unit="image")
            outcomes = dict(zip(mine, done, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
    outcomes = {id_: outcomes[id_] if id_ in outcomes else count_or_read(id_) for id_ in files}
    failures |= {id_: outcome for id_, outcome in outcomes.items() if isinstance(outcome, str)}
    counts = [outcome for outcome in outcomes.values() if not isinstance(outcome, str)]
    refuse_nothing(counts, failures, label)
    return np.stack(counts)
