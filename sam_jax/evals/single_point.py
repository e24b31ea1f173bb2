"""Single-point valid mask evaluation: the mIoU of masks from one click, and from further clicks.

Reference: paper, sections 7.1 and D.1. Where the paper does not say: the previous logits are fed back as mask prompt;
IoU is measured at the original size; from large datasets random images are drawn until there are 10,000 masks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from sam_jax.bounds import CheckedFields, Clicks, CountOrNone, Seed, Threads
from sam_jax.config import ParallelConfig
from sam_jax.data.zero_shot.registry import OTHER_DATASETS, PAPER_DATASETS, SAMPLE, find_dataset
from sam_jax.evals.click_runs import (
    DatasetSample,
    Problems,
    describe_left_out,
    open_datasets,
    run_clicks,
    sample_examples,
)
from sam_jax.evals.click_simulation import ClickRules
from sam_jax.evals.intervals import mean_interval, show_estimate
from sam_jax.evals.methods import open_segmenter
from sam_jax.evals.records import IOU_SCALE, MaskRecord, sum_counts
from sam_jax.evals.report import EvalReport
from sam_jax.evals.segmenters import Segmenter
from sam_jax.parallel.start import start_processes

REPORTED_CLICKS = (1, 2, 3, 5, 9)  # numbers of clicks after which the mIoU is reported
MEAN_ROW = "mean over datasets"
PUBLISHED = {  # Ravi et al. 2024 (SAM 2), tables 6 and 15: means over the 23 datasets after 1 and 5 clicks
    "SAM ViT-H": {"iou@1": 58.1, "iou@5": 81.3},
    "SAM ViT-B": {"iou@1": 55.9, "iou@5": 80.9},
}


@dataclasses.dataclass(frozen=True)
class SinglePointConfig(CheckedFields):
    """Options of the single-point evaluation."""

    data: Path  # folder with one folder per dataset, by its name
    out: Path = Path("runs/eval_small")  # folder for the records and the report
    model: str = "small"  # name of a released model, path of a checkpoint, or OWNER/NAME on the Hugging Face Hub
    datasets: tuple[str, ...] = tuple(OTHER_DATASETS)  # datasets, by their names in data/zero_shot/registry.py
    methods: tuple[str, ...] = ("sam", "region growing", "GrabCut", "disc")  # methods to evaluate; also ritm:PATH
    max_images: CountOrNone = 100  # random images per dataset, the same for every method; 0 means all
    max_masks: CountOrNone = 3  # random masks per image, the same for every method; 0 means all
    clicks: Clicks = 5  # clicks per object
    first_click: Literal["center", "random"] = "center"  # the pixel farthest from the boundary, or any pixel
    seed: Seed = 0  # seed of the sample and of random clicks
    workers: Threads = 2  # images evaluated at a time, in threads
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Evaluates every method on every available dataset, as `run` does."""
        start_processes(self.parallel)
        return run(self, lambda method: open_segmenter(method, self.model))


def open_sample(config: SinglePointConfig, name: str) -> DatasetSample:
    """Opens and samples a dataset; with `max_images` 0, large datasets are sampled to the paper's size.

    Raises:
        MissingFile, UserError, MissingPackage: it cannot be read; the message says what is missing and where to get it.
    """
    dataset = find_dataset(name)
    source = dataset.open(config.data, name)
    enough = SAMPLE if dataset.sampled and not config.max_images else 0
    return sample_examples(
        source, config.max_images, config.max_masks, config.seed, enough=enough, folder=config.data / name
    )


def run(config: SinglePointConfig, make_segmenter: Callable[[str], Segmenter]) -> EvalReport:
    """Evaluates every method on every available dataset; missing datasets are named in the report.

    Records are kept in out/NAME.jsonl with the segmenter's name, one line per image.

    Args:
        make_segmenter: returns the segmenter of a method name.

    Returns:
        A report whose results are `methods` (by method and dataset, from `summarize`), `missing` and `left_out`.

    Raises:
        UserError: a dataset or method is unknown, or no image can be evaluated.
        MissingFile: none of the datasets is there.
    """
    for name in config.datasets:
        find_dataset(name)
    samples, missing = open_datasets(config.datasets, lambda name: open_sample(config, name))
    rules = ClickRules(config.clicks, config.first_click, config.seed)
    protocol = {"seed": config.seed, "pictures": config.max_images, "masks": config.max_masks}
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    left_out: dict[str, Problems] = {}
    for method in config.methods:
        segmenter = make_segmenter(method)
        counts, left_out[method] = run_clicks(
            segmenter, samples, rules, config.out, protocol, count_record, workers=config.workers
        )
        methods[method] = {name: summarize(images) for name, images in counts.items()}
        methods[method][MEAN_ROW] = mean_over_datasets(methods[method].values())
    title = f"mIoU in percent after 1 to {config.clicks} clicks, the first {FIRST_CLICK_PLACES[config.first_click]}"
    results = {"methods": methods, "missing": missing, "left_out": left_out}
    return EvalReport(title, single_point_table(methods) + describe_left_out(missing, left_out), results)


FIRST_CLICK_PLACES = {"center": "at the centre", "random": "at random"}


def count_record(record: MaskRecord) -> Counter[str]:
    """Returns the integer counts of one mask, which can be summed exactly."""
    iou = record["iou"]
    counts = {f"iou@{n}": round(iou[n - 1] * IOU_SCALE) for n in REPORTED_CLICKS if n <= len(iou)}
    best = round(record["best"] * IOU_SCALE)
    return Counter({"masks": 1, "best@1": best, "gap@1": best - counts["iou@1"], **counts})


def summarize(images: Sequence[Counter[str]]) -> dict[str, Any]:
    """Returns means over the masks of all images in percent, from the counts of each image.

    Returns:
        `best@1` of the best of the first masks, `iou@N` after N clicks (`iou@1`: of the most confident one), `gap@1`
        between these two, and in `intervals` the 95 % interval of each.
    """
    sums = sum_counts(images)
    masks = [image["masks"] for image in images]
    scale = IOU_SCALE / 100
    keys = [key for key in sums if key != "masks"]
    return {
        "masks": sums["masks"],
        **{key: sums[key] / (scale * sums["masks"]) for key in keys},
        "intervals": {key: mean_interval([image[key] / scale for image in images], masks) for key in keys},
    }


def mean_over_datasets(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Averages over datasets with equal weight, however many masks they have; those without masks are left out."""
    non_empty = [summary for summary in summaries if summary["masks"]]
    keys = [key for key in non_empty[0] if key not in ("masks", "intervals")]
    means = {key: sum(summary[key] for summary in non_empty) / len(non_empty) for key in keys}
    return {"masks": sum(summary["masks"] for summary in non_empty), "datasets": len(non_empty)} | means


def single_point_table(methods: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Formats a Markdown table with a row per dataset and method, then the means, measured and published."""
    keys = ["best@1", "iou@1", "gap@1", *(f"iou@{n}" for n in REPORTED_CLICKS[1:])]
    firsts = ["best of the first masks @1", "most confident @1", "gap"]
    head = ["dataset", "method", "masks", *firsts, *(f"@{n}" for n in REPORTED_CLICKS[1:]), ""]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]

    def row(dataset: str, method: str, summary: dict[str, Any], origin: str) -> None:
        intervals = summary.get("intervals", {})
        cells = [show_estimate(summary.get(key), intervals.get(key)) for key in keys]
        lines.append(f"| {dataset} | {method} | {summary.get('masks', '')} | {' | '.join(cells)} | {origin} |")

    names = [name for name in next(iter(methods.values())) if name != MEAN_ROW]
    for name in names:
        for method, by_dataset in methods.items():
            row(name, method, by_dataset[name], "measured")
    for method, by_dataset in methods.items():
        row(f"mean of {by_dataset[MEAN_ROW]['datasets']} datasets", method, by_dataset[MEAN_ROW], "measured")
    for method, summary in PUBLISHED.items():
        row(f"mean of the paper's {len(PAPER_DATASETS)}", method, summary, "published")
    return "\n".join(lines) + "\n"
