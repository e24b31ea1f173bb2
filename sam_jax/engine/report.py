"""A project's report: tables in Markdown, and plots of its masks as in the paper's figures 5 and 6, as PNG."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_jax.engine.mask_statistics import StageStatistics, compute_statistics, summarize_statistics
from sam_jax.engine.records import Stage
from sam_jax.engine.stages import describe_status, summarize
from sam_jax.engine.store import Store
from sam_jax.errors import MissingPackage
from sam_jax.files import make_folder, replacing, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

StatisticsByStage = dict[Stage, StageStatistics]
BINS = 24
UNIT = np.linspace(0, 1, BINS + 1)


def write_report(store: Store) -> Path:
    """Writes PROJECT/report/report.md and its plots, replacing earlier ones.

    Returns:
        The path of report.md.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackage("plots need matplotlib: pip install 'sam_jax[train]'") from error
    folder = store.folder / "report"
    make_folder(folder)
    summary, by_stage = summarize(store), compute_statistics(store)
    text = ["# Report of the data engine", "", "```", describe_status(summary), "```", "", *_table(by_stage), ""]
    if by_stage:
        for name, title, draw in PLOTS:
            _plot(folder / f"{name}.png", title, functools.partial(draw, by_stage=by_stage))
            text += [f"## {title}", "", f"![{title}]({name}.png)", ""]
        _plot_centres(folder / "centres.png", by_stage)
        text += ["## Where masks lie", "", "![Centres of masks](centres.png)", ""]
    judged = [model for model in summary["models"] if model["held_out"]]
    if judged:
        _plot(folder / "models.png", "Models", lambda axes: _draw_models(axes, judged))
        text += ["## Models on held-out images", "", "![mIoU of models](models.png)", ""]
    path = folder / "report.md"
    write_atomically(path, "\n".join(text))
    return path


def _table(by_stage: StatisticsByStage) -> list[str]:
    rows = {stage: summarize_statistics(statistics) for stage, statistics in by_stage.items()}
    if not rows:
        return ["There is no finished image yet."]
    names = list(next(iter(rows.values())))
    lines = [f"| stage | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for stage, row in rows.items():
        lines.append(f"| {stage} | {' | '.join(_cell(row[name]) for name in names)} |")
    return lines


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _plot(path: Path, title: str, draw: Callable[[Axes], Any], size: tuple[float, float] = (6.4, 3.6)) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _colour(stage: Stage) -> str:
    return {"assisted-manual": "C0", "semi-automatic": "C1", "automatic": "C2"}[stage]


def _draw_histograms(
    axes: Axes, by_stage: StatisticsByStage, values: Callable[[StageStatistics], Any], label: str, edges: np.ndarray
) -> None:
    """Draws a line per stage, the percentage of its masks in each bin."""
    top = edges[-1]
    centres = (edges[:-1] + edges[1:]) / 2
    for stage, statistics in by_stage.items():
        found = np.asarray(values(statistics), float)
        if len(found):
            shares = np.histogram(np.clip(found, 0, top), edges)[0] / len(found)
            axes.plot(centres, 100 * shares, color=_colour(stage), label=f"{stage} ({len(found)})")
    axes.set(xlabel=label, ylabel="percent", xlim=(0, top), ylim=(0, None))
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing was recorded", transform=axes.transAxes, ha="center", color="0.5")


def _draw_per_image(axes: Axes, by_stage: StatisticsByStage) -> None:
    most = max(max(statistics.per_image, default=1) for statistics in by_stage.values())
    width = -(-most // BINS)  # each bin covers the same number of integers
    edges = 0.5 + width * np.arange(-(-most // width) + 1)
    _draw_histograms(axes, by_stage, lambda m: m.per_image, "masks on an image (images in brackets)", edges)


def _draw_size(axes: Axes, by_stage: StatisticsByStage) -> None:
    _draw_histograms(axes, by_stage, lambda m: m.shapes[:, 0], "square root of the mask's share of the image", UNIT)


def _draw_concavity(axes: Axes, by_stage: StatisticsByStage) -> None:
    _draw_histograms(axes, by_stage, lambda m: m.shapes[:, 1], "1 - area / area of the convex hull", UNIT)


def _draw_seconds(axes: Axes, by_stage: StatisticsByStage) -> None:
    every = [seconds for statistics in by_stage.values() for seconds in statistics.seconds]
    top = float(np.percentile(every, 99)) * 1.05 if every else 1.0
    _draw_histograms(
        axes, by_stage, lambda m: m.seconds, "seconds of a person (the longest in the last bin)", top * UNIT
    )


def _draw_states(axes: Axes, by_stage: StatisticsByStage) -> None:
    """Draws a bar per stage, split by what became of its masks."""
    names = list(dict.fromkeys(name for statistics in by_stage.values() for name in statistics.states))
    stages = list(by_stage)
    totals = np.array([sum(statistics.states.values()) for statistics in by_stage.values()])
    left = np.zeros(len(stages))
    for i, name in enumerate(names):
        shares = 100 * np.array([statistics.states.get(name, 0) for statistics in by_stage.values()]) / totals
        bars = axes.barh(stages, shares, left=left, color=f"C{i}", label=name, height=0.6)
        axes.bar_label(bars, [f"{share:.0f}" if share >= 4 else "" for share in shares], label_type="center", color="w")
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="percent of masks", xlim=(0, 100))
    axes.legend(frameon=False, fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22))


def _draw_models(axes: Axes, models: list[dict[str, Any]]) -> None:
    numbers = [str(model["number"]) for model in models]
    mious = [model["held_out"]["miou"] for model in models]
    colours = ["C0" if model["state"] == "promoted" else "0.7" for model in models]
    bars = axes.bar(numbers, mious, color=colours, width=0.6)
    axes.bar_label(bars, [f"{miou:.1f}" for miou in mious])
    axes.set(
        xlabel="model (grey: not promoted)", ylabel="mIoU after one click, percent", ylim=(0, max(mious) * 1.15 or 1)
    )


def _plot_centres(path: Path, by_stage: StatisticsByStage) -> None:
    """Plots a heat map of mask centres for each stage, with all images stretched to a square."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(by_stage) + 0.4, 2.9), layout="constrained")
    row = figure.subplots(1, len(by_stage), squeeze=False)[0]
    for axes, (stage, statistics) in zip(row, by_stage.items(), strict=True):
        x, y = statistics.shapes[:, 2], statistics.shapes[:, 3]
        counts = np.histogram2d(y, x, bins=12, range=((0, 1), (0, 1)))[0]
        axes.imshow(counts, extent=(0, 1, 1, 0), cmap="magma", interpolation="nearest")
        axes.set_title(f"{stage} ({len(x)})", fontsize="small")
        axes.set(xticks=[], yticks=[])
    _save(figure, path)


PLOTS: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("masks_per_picture", "Masks per image", _draw_per_image),
    ("size", "Size of masks", _draw_size),
    ("concavity", "Concavity of masks", _draw_concavity),
    ("seconds", "Time per mask", _draw_seconds),
    ("states", "What became of masks", _draw_states),
)
