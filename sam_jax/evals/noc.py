"""Number of clicks (NoC): how many clicks a method needs for an IoU of 80, 85 and 90 percent, at most 20.

Reference: Sofiiuk et al. 2021 (RITM), whose protocol this is: each click is at the centre of the largest error region,
by its largest inscribed circle; an object that never reaches the IoU counts as the maximum number of clicks; ignored
pixels are left out everywhere.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sam_jax.bounds import CheckedFields, Clicks, CountOrNone, Seed, Threads
from sam_jax.config import ParallelConfig
from sam_jax.data.examples import Source, read_grabcut
from sam_jax.data.interactive import InteractiveSource
from sam_jax.data.zero_shot.registry import OTHER_DATASETS
from sam_jax.errors import MissingFile, UserError
from sam_jax.evals.click_runs import Problems, describe_left_out, open_datasets, run_clicks, sample_examples
from sam_jax.evals.click_simulation import ClickRules
from sam_jax.evals.intervals import mean_interval, show_estimate
from sam_jax.evals.methods import open_segmenter
from sam_jax.evals.records import MaskRecord, sum_counts
from sam_jax.evals.report import EvalReport
from sam_jax.evals.ritm import PREFIX
from sam_jax.evals.segmenters import Segmenter
from sam_jax.parallel.start import start_processes
from sam_jax.ritm import ZoomIn

IOU_THRESHOLDS = (80, 85, 90)  # IoU in percent


@dataclasses.dataclass(frozen=True)
class InteractiveDataset:
    """A benchmark dataset of interactive segmentation."""

    open_source: Callable[[Path], Source]  # opens it below the data folder
    source: str  # where to get it
    zoom_side: int = 400  # zoom-in size in pixels of RITM's published results


_RELEASE = "the release page of github.com/saic-vul/ritm_interactive_segmentation (or fbrs_interactive_segmentation)"
OWN_SET = OTHER_DATASETS["photographs"]
INTERACTIVE_DATASETS = {
    "GrabCut": InteractiveDataset(lambda data: InteractiveSource(data / "GrabCut", "GrabCut"), _RELEASE),
    "Berkeley": InteractiveDataset(lambda data: InteractiveSource(data / "Berkeley", "Berkeley"), _RELEASE),
    "DAVIS": InteractiveDataset(lambda data: InteractiveSource(data / "DAVIS", "DAVIS", graded=False), _RELEASE, 600),
    "grabcut20": InteractiveDataset(
        lambda data: read_grabcut(data / "grabcut20", data / "bsds500"),
        "github.com/flandrade/dataset-interactive-algorithms, beside bsds500",
    ),
    "photographs": InteractiveDataset(
        lambda data: OWN_SET.layout.open(data / "photographs", "photographs"), OWN_SET.source
    ),
}
PUBLISHED = {  # from the README of RITM: NoC@85, NoC@90
    "RITM HRNet18, COCO+LVIS": {"GrabCut": (1.42, 1.54), "Berkeley": (None, 2.26), "DAVIS": (4.36, 5.74)},
    "RITM HRNet32, COCO+LVIS": {"GrabCut": (1.46, 1.56), "Berkeley": (None, 2.10), "DAVIS": (4.11, 5.34)},
}


@dataclasses.dataclass(frozen=True)
class NocConfig(CheckedFields):
    """Options of the number-of-clicks evaluation."""

    data: Path  # folder with GrabCut, Berkeley, DAVIS, grabcut20 or photographs
    out: Path = Path("runs/eval_noc")  # folder for the records and the report
    model: str = "small"  # name of a released model, path of a checkpoint, or OWNER/NAME on the Hugging Face Hub
    datasets: tuple[str, ...] = tuple(INTERACTIVE_DATASETS)  # datasets to evaluate
    methods: tuple[str, ...] = ("sam", "region growing", "disc")  # methods to evaluate; also GrabCut, ritm:PATH
    max_images: CountOrNone = 0  # random images per dataset; 0 means all
    clicks: Clicks = 20  # most clicks per object
    seed: Seed = 0  # seed of the sample
    workers: Threads = 2  # images evaluated at a time, in threads
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Evaluates every method on every available dataset; missing datasets are named in the report.

        Raises:
            UserError: a dataset or method is unknown, or no image can be evaluated.
            MissingFile: none of the datasets is there.
        """
        start_processes(self.parallel)
        return run(self, lambda method, zoom: open_segmenter(method, self.model, zoom))


def run(config: NocConfig, make_segmenter: Callable[[str, ZoomIn], Segmenter]) -> EvalReport:
    """Does what `NocConfig.evaluate` says with the caller's segmenters; records go to out/DATASET/NAME.jsonl."""
    unknown = sorted(set(config.datasets) - set(INTERACTIVE_DATASETS))
    if unknown:
        raise UserError(f"unknown datasets {unknown}; known are {sorted(INTERACTIVE_DATASETS)}")
    samples, missing = open_datasets(
        config.datasets,
        lambda name: sample_examples(
            open_interactive(name, config.data), config.max_images, 0, config.seed, folder=config.data
        ),
    )
    rules = ClickRules(config.clicks, enough=max(IOU_THRESHOLDS) / 100)
    protocol = {"seed": config.seed, "pictures": config.max_images}
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    left_out: dict[str, Problems] = {}
    for method in config.methods:
        methods[method], left_out[method] = {}, {}
        made: dict[int, Segmenter] = {}
        for name, sample in samples.items():
            side = INTERACTIVE_DATASETS[name].zoom_side if method.startswith(PREFIX) else 0
            if side not in made:
                made[side] = make_segmenter(method, ZoomIn(side=side) if side else ZoomIn())
            segmenter = made[side]
            counts, problems = run_clicks(
                segmenter, {name: sample}, rules, config.out / name, protocol, count_clicks, workers=config.workers
            )
            methods[method][name] = summarize(counts[name], rules.clicks)
            left_out[method] |= problems
    results = {"methods": methods, "missing": missing, "left_out": left_out}
    return EvalReport(
        f"Clicks for an IoU of {', '.join(map(str, IOU_THRESHOLDS))} percent, at most {config.clicks}",
        noc_table(methods) + describe_left_out(missing, left_out),
        results,
    )


def open_interactive(name: str, data: Path) -> Source:
    """Opens an interactive segmentation dataset.

    Raises:
        MissingFile: it is not there; the message says where to get it.
    """
    known = INTERACTIVE_DATASETS[name]
    try:
        return known.open_source(data)
    except FileNotFoundError as error:
        raise MissingFile(f"{error}. Get {name} from {known.source} and unpack it to {data / name}") from error


def clicks_needed(iou: list[float], target: float) -> int | None:
    """Returns after how many clicks the IoU first reaches the target; None if it never does."""
    return next((n for n, value in enumerate(iou, start=1) if value >= target), None)


def count_clicks(record: MaskRecord) -> Counter[str]:
    """Returns the integer counts of one object, which can be summed exactly."""
    counts = Counter({"masks": 1})
    for target in IOU_THRESHOLDS:
        needed = clicks_needed(record["iou"], target / 100)
        counts[f"clicks@{target}"] = needed or len(record["iou"])
        counts[f"failed@{target}"] = needed is None
    return counts


def summarize(images: Sequence[Counter[str]], most: int) -> dict[str, Any]:
    """Returns figures over the objects of all images, from the counts of each image.

    Returns:
        The mean number of clicks `noc@T`, its 95 % interval in `intervals`, and `failed@T`, the number of objects that
        never reach T percent.
    """
    sums = sum_counts(images)
    masks = [image["masks"] for image in images]
    summary: dict[str, Any] = {"masks": sums["masks"], "most": most, "intervals": {}}
    for target in IOU_THRESHOLDS:
        clicks = [image[f"clicks@{target}"] for image in images]
        summary[f"noc@{target}"] = sum(clicks) / sum(masks) if images else None
        summary[f"failed@{target}"] = sums[f"failed@{target}"]
        summary["intervals"][f"noc@{target}"] = mean_interval(clicks, masks) if images else None
    return summary


def noc_table(methods: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Formats a Markdown table with a row per dataset and method, measured and published."""
    head = [
        "dataset",
        "method",
        "objects",
        *(f"NoC@{t}" for t in IOU_THRESHOLDS),
        *(f"failed@{t}" for t in IOU_THRESHOLDS),
        "",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in next(iter(methods.values())):
        for method, by_dataset in methods.items():
            result = by_dataset[name]
            keys = [f"noc@{t}" for t in IOU_THRESHOLDS]
            cells = [show_estimate(result[key], result["intervals"][key], digits=2) for key in keys]
            cells += [str(result[f"failed@{t}"]) for t in IOU_THRESHOLDS]
            lines.append(f"| {name} | {method} | {result['masks']} | {' | '.join(cells)} | measured |")
        for method, figures in PUBLISHED.items():
            if name in figures:
                shown = " | ".join("" if value is None else f"{value:.2f}" for value in figures[name])
                lines.append(f"| {name} | {method} | | | {shown} | | | | published |")
    return "\n".join(lines) + "\n"
