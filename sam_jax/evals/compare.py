"""Compares two methods mask by mask and plots the differences per dataset, like figure 9a of the paper."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam_jax.bounds import CheckedFields, Clicks
from sam_jax.data.zero_shot import PAPER_DATASETS
from sam_jax.errors import UserError
from sam_jax.evals.intervals import mean_interval
from sam_jax.evals.records import ImageRecord, read_records
from sam_jax.evals.report import EvalReport
from sam_jax.files import make_folder, write_atomically


@dataclasses.dataclass(frozen=True)
class CompareConfig(CheckedFields):
    """Options of the comparison of two click evaluations."""

    first: Path = Path("runs/eval_small/sam.jsonl")  # records (NAME.jsonl) of a click evaluation
    second: Path = Path("runs/eval_small/disc.jsonl")  # records of the same evaluation with another method
    out: Path = Path("runs/eval_compare")  # folder for the report and differences.png
    clicks: Clicks = 1  # number of clicks after which to compare

    def evaluate(self) -> EvalReport:
        """Computes, tabulates and plots the differences on the masks that both records have.

        Raises:
            MissingFile, UserError: as `compare`.
        """
        differences = compare(self.first, self.second, self.clicks)
        plot_differences(differences, self.first.stem, self.second.stem, self.out / "differences.png")
        return EvalReport(
            f"IoU of {self.first.stem} minus IoU of {self.second.stem} after {self.clicks} clicks, percent points",
            differences_table(differences, self.first.stem, self.second.stem),
            {"differences": [dataclasses.asdict(difference) for difference in differences]},
        )


@dataclasses.dataclass(frozen=True)
class DatasetDifference:
    """The difference between two methods on one dataset; IoU in percent."""

    dataset: str
    masks: int
    mean: float  # mean of first minus second
    low: float  # lower end of the 95 % interval of the mean: bootstrap over images, not over masks
    high: float  # upper end of that interval
    best: float  # mean of the best of the first method's three masks minus the second's mask, after one click
    first_better: int  # number of masks on which the first is better
    second_better: int  # number of masks on which the second is better


def compare(first: Path, second: Path, clicks: int = 1) -> list[DatasetDifference]:
    """Computes the differences per dataset on the masks that both records have, largest first.

    Args:
        first, second: records (NAME.jsonl) of the same evaluation with two methods.
        clicks: number of clicks after which to compare.

    Raises:
        MissingFile: a file of records does not exist.
        UserError: the records are of different protocols or have no mask in common.
    """
    (header, lines), (other_header, other_lines) = read_records(first), read_records(second)
    rules, other_rules = ({k: v for k, v in h.items() if k != "segmenter"} for h in (header, other_header))
    if rules != other_rules:
        raise UserError(f"expected records of one evaluation, got {first} with {rules} and {second} with {other_rules}")
    most = rules.get("rules", {}).get("clicks", 0)
    if not 1 <= clicks <= most:
        raise UserError(f"expected a number of clicks from 1 to {most}, got {clicks}")
    mine, theirs = _by_mask(lines), _by_mask(other_lines)
    common = [key for key in mine if key in theirs]
    if not common:
        raise UserError(f"{first} and {second} have no mask in common")
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for dataset, image, mask in common:
        a, b = mine[dataset, image, mask], theirs[dataset, image, mask]
        pair = (a["iou"][clicks - 1] - b["iou"][clicks - 1], a["best"] - b["iou"][0])
        rows.setdefault(dataset, {}).setdefault(image, []).append(pair)
    found = [_difference(dataset, list(images.values())) for dataset, images in rows.items()]
    return sorted(found, key=lambda difference: -difference.mean)


def _by_mask(lines: Sequence[ImageRecord]) -> dict[tuple[str, str, int], dict]:
    return {(line["dataset"], line["picture"], record["mask"]): record for line in lines for record in line["masks"]}


def _difference(dataset: str, images: list[list[tuple[float, float]]]) -> DatasetDifference:
    values = 100 * np.array([pair for rows in images for pair in rows])
    interval = mean_interval([100 * sum(value for value, _ in rows) for rows in images], [len(rows) for rows in images])
    assert interval, "every image has a mask"
    low, high = interval
    return DatasetDifference(
        dataset,
        len(values),
        float(values[:, 0].mean()),
        low,
        high,
        float(values[:, 1].mean()),
        int((values[:, 0] > 0).sum()),
        int((values[:, 0] < 0).sum()),
    )


def differences_table(differences: Sequence[DatasetDifference], first: str, second: str) -> str:
    """Formats a Markdown table, with the published difference between SAM ViT-H and RITM for the paper's datasets."""
    head = [
        "dataset",
        "masks",
        f"{first} - {second}",
        "95 % interval",
        f"best of {first} @1 - {second}",
        "better",
        "worse",
    ]
    head.append("published, SAM ViT-H - RITM @1")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for d in differences:
        known = PAPER_DATASETS.get(d.dataset)
        published = f"{known.difference:+.1f}" if known and known.difference is not None else ""
        lines.append(
            f"| {d.dataset} | {d.masks} | {d.mean:+.1f} | {d.low:+.1f} to {d.high:+.1f} | {d.best:+.1f} "
            f"| {d.first_better} | {d.second_better} | {published} |"
        )
    mean, best = (
        sum(values) / len(differences) for values in zip(*((d.mean, d.best) for d in differences), strict=True)
    )
    masks = sum(d.masks for d in differences)
    lines.append(f"| mean of {len(differences)} datasets | {masks} | {mean:+.1f} | | {best:+.1f} | | | |")
    return "\n".join(lines) + "\n"


def plot_differences(differences: Sequence[DatasetDifference], first: str, second: str, path: Path) -> None:
    """Plots a horizontal bar with its interval for each dataset, and a dot for the best of the first method's masks.

    Args:
        first, second: names of the methods.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.28 * len(differences)), dpi=120)
    axes = figure.add_subplot(xlabel=f"IoU of {first} minus IoU of {second}, percent points")
    rows = np.arange(len(differences))[::-1]
    means = np.array([d.mean for d in differences])
    spread = np.array([(max(d.mean - d.low, 0), max(d.high - d.mean, 0)) for d in differences]).T
    colours = np.where(means >= 0, "tab:blue", "tab:orange").tolist()
    axes.barh(rows, means, color=colours, xerr=spread, ecolor="0.3", error_kw={"linewidth": 0.8})
    best = [d.best for d in differences]
    axes.plot(best, rows, "o", color="black", markersize=4, label=f"{first}, best of the first masks")
    for row, mean in zip(rows, means, strict=True):
        axes.annotate(f"{mean:+.1f}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(rows, [f"{d.dataset} ({d.masks})" for d in differences], fontsize=8)
    axes.legend(loc="lower right", fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    make_folder(path.parent)
    write_atomically(path, file.getvalue())
