"""Plots precision-recall curves in the style of the BSDS benchmark."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sam_jax.files import make_folder, write_atomically

HUMAN_POINT = (0.7235, 0.9014)  # human recall and precision as the edges toolbox marks them: F 0.803


def plot_precision_recall(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Plots precision-recall curves over lines of equal F-measure, with the published human performance.

    Args:
        curves: for each label, `precision` and `recall` at each threshold; a single threshold is drawn as a dot.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=120)
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
    recall = np.linspace(0.01, 1, 200)
    for f in np.arange(1, 10) / 10:
        on_line = recall > f / 2
        axes.plot(
            recall[on_line], f * recall[on_line] / (2 * recall[on_line] - f), color="0.85", linewidth=0.8, zorder=0
        )
        axes.annotate(f"F {f:.1f}", (0.995, f / (2 - f)), color="0.6", fontsize=7, ha="right", va="bottom")
    axes.plot(*HUMAN_POINT, "o", color="green", label="human, published (F 0.803)")
    for label, curve in curves.items():
        p, r = np.array(curve["precision"]), np.array(curve["recall"])
        best = float(np.max(2 * p * r / np.maximum(p + r, 1e-12)))
        drawn = (p > 0) | (r > 0)  # thresholds that no pixel reaches have no precision
        axes.plot(r[drawn], p[drawn], "o-" if len(p) == 1 else "-", label=f"{label} (F {best:.3f})")
    axes.legend(loc="lower left", fontsize=8)
    axes.set_aspect("equal")
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    make_folder(path.parent)
    write_atomically(path, file.getvalue())
