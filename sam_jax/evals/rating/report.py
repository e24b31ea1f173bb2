"""Statistics of the ratings: means with confidence intervals, and paired differences between sources.

Reference: paper, section D.5: paired t-test, and paired bootstrap with 10,000 samples and 99 % intervals.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from sam_jax.errors import UserError
from sam_jax.evals.rating.study import HIGHEST_RATING, LOWEST_RATING, Study
from sam_jax.evals.report import EvalReport

RESAMPLES = 10_000  # bootstrap samples


def report_ratings(study: Study) -> EvalReport:
    """Reports the ratings of a study so far.

    Raises:
        UserError: there is no rating yet.
    """
    if not study.ratings:
        raise UserError(f"expected ratings in {study.folder}, found none; give some with sam-jax rate serve")
    of_source: dict[str, dict[int, int]] = {source: {} for source in study.sources}
    for rating in study.ratings.values():
        job = study.jobs[rating.job]
        of_source[job.source][job.object] = rating.rating
    sources = {source: _describe(np.array(list(rows.values()), float)) for source, rows in of_source.items()}
    pairs = []
    for first, second in itertools.combinations(study.sources, 2):
        both = sorted(of_source[first].keys() & of_source[second].keys())
        differences = np.array([of_source[first][o] - of_source[second][o] for o in both], float)
        pairs.append({"first": first, "second": second, **compare(differences)})
    title = f"Mask quality, {LOWEST_RATING} to {HIGHEST_RATING}: {len(study.ratings)} of {len(study.jobs)} masks rated"
    raters = sorted({rating.rater for rating in study.ratings.values() if rating.rater is not None})
    seconds = [rating.seconds for rating in study.ratings.values() if rating.seconds is not None]
    if raters and seconds:
        title += f" by {len(raters)}, in {np.median(seconds):.0f} s each (median)"
    return EvalReport(title, _table(sources, pairs), {"sources": sources, "pairs": pairs, "raters": raters})


def _describe(ratings: Float[np.ndarray, " N"]) -> dict[str, Any]:
    """Returns the mean and half the width of its 95 % interval (Student's t; None for fewer than two ratings)."""
    n = len(ratings)
    half = float(scipy.stats.t.ppf(0.975, n - 1) * ratings.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    counts = [int((ratings == value).sum()) for value in range(LOWEST_RATING, HIGHEST_RATING + 1)]
    return {"ratings": n, "mean": float(ratings.mean()) if n else None, "half_width_95": half, "counts": counts}


def compare(differences: Float[np.ndarray, " N"], seed: int = 0) -> dict[str, Any]:
    """Tests whether the masks of one source are rated higher than those of another on the same objects.

    Args:
        differences: first minus second rating of each object.

    Returns:
        `objects` (their number), `difference` (mean), `p` of the paired t-test and `interval_99` of the paired
        bootstrap. The last two are None with fewer than two objects or if all differences are equal.
    """
    result: dict[str, Any] = {"objects": len(differences), "difference": None, "p": None, "interval_99": None}
    if len(differences):
        result["difference"] = float(differences.mean())
    if len(differences) > 1 and np.ptp(differences):
        result["p"] = float(scipy.stats.ttest_1samp(differences, 0).pvalue)
        rng = np.random.default_rng(seed)
        means = [rng.choice(differences, len(differences)).mean() for _ in range(RESAMPLES)]
        result["interval_99"] = np.percentile(means, (0.5, 99.5)).tolist()
    return result


def _table(sources: dict[str, dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    lines = ["| source | rated | mean | 95 % |", "|---|---|---|---|"]
    for source, row in sources.items():
        lines.append(f"| {source} | {row['ratings']} | {_number(row['mean'])} | ± {_number(row['half_width_95'])} |")
    lines += ["", "| pair | objects | mean difference | 99 %, bootstrap | p, t-test |", "|---|---|---|---|---|"]
    for row in pairs:
        low, high = row["interval_99"] or (None, None)
        interval = f"{_number(low)} to {_number(high)}"
        p = "-" if row["p"] is None else f"{row['p']:.2g}"
        pair = f"{row['first']} - {row['second']}"
        lines.append(f"| {pair} | {row['objects']} | {_number(row['difference'])} | {interval} | {p} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
