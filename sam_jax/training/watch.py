"""What can be seen of a run while it goes: numbers, for TensorBoard too, curves, and predictions as images."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from sam_jax.files import replacing, write_atomically
from sam_jax.ops.draw import draw_masks
from sam_jax.types import Batch

Values = Mapping[str, float | Sequence[float]]


class MetricsLog:
    """Appends one JSON object per line to `metrics.jsonl`, and the same to TensorBoard if tensorboardX is installed.

    Args:
        out: the run's folder.
        first_step: what a run that was killed wrote beyond this step is dropped: the resumed one writes it again.
        enabled: False writes nothing; of several processes one writes.
    """

    def __init__(self, out: Path, first_step: int, *, enabled: bool = True) -> None:
        self._path, self._tensorboard, self._enabled = out / "metrics.jsonl", None, enabled
        if not enabled:
            return
        if self._path.exists():
            kept = [json.dumps(record) + "\n" for record in read_metrics(out) if record["step"] <= first_step]
            write_atomically(self._path, "".join(kept))
        with contextlib.suppress(ImportError):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: Values) -> None:
        if not self._enabled:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._tensorboard is not None:
            for name, value in values.items():
                for i, number in enumerate(value if isinstance(value, Sequence) else (value,)):
                    tag = f"{name}/round_{i}" if isinstance(value, Sequence) else name
                    self._tensorboard.add_scalar(tag, number, step)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that a kill has torn is left out."""
    records = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


class Clock:
    """Steps per second since the last look, and the share of that time in which the devices waited for data."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._steps += 1

    def look(self) -> tuple[float, float]:
        """Seconds per step and the share of waiting; starts anew."""
        elapsed = time.perf_counter() - self._start
        seconds, share = elapsed / max(self._steps, 1), self._waited / elapsed
        self._restart()
        return seconds, share


def peak_memory_gib() -> float:
    """Of this process's first device, or of the process itself where the device does not say (a CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def plot_curves(out: Path) -> Path:
    """`curves.png` in the run's folder: losses, and the IoU after each round in training and validation."""
    from matplotlib.figure import Figure

    records = read_metrics(out)
    training = [record for record in records if "loss" in record]
    validation = [record for record in records if "validation_iou" in record]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    losses, train_axes, validation_axes = figure.subplots(1, 3)
    steps = [record["step"] for record in training]
    for name in ("loss", "focal", "dice", "iou_error"):
        losses.plot(steps, _smooth([record[name] for record in training]), label=name)
        if validation:
            points = [record[f"validation_{name}"] for record in validation]
            losses.plot(
                [record["step"] for record in validation], points, "o", ms=3, color=losses.lines[-1].get_color()
            )
    losses.set(title="losses, mean over rounds (dots: validation)", yscale="log", xlabel="step")
    losses.legend()
    for axes, rows, name, title in (
        (train_axes, training, "iou", "mIoU after each round, training"),
        (validation_axes, validation, "validation_iou", "mIoU after each round, validation"),
    ):
        rounds = len(rows[0][name]) if rows else 0
        for i in range(rounds):
            values = [record[name][i] for record in rows]
            shown = _smooth(values) if axes is train_axes else values
            axes.plot([record["step"] for record in rows], shown, label=f"round {i}", color=f"C{i % 10}")
        axes.set(title=title, ylim=(0, 1), xlabel="step")
        if rounds:
            axes.legend(ncols=2, fontsize="small")
    path = out / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    return path


def _smooth(values: Sequence[float], window: int = 9) -> np.ndarray:
    """A running mean, of fewer values at the ends."""
    if not values:  # a run shorter than `log_every`
        return np.array([])
    window = min(window, len(values))
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw_predictions(
    batch: Batch,
    points: np.ndarray,
    labels: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    per_image: int = 1,
) -> np.ndarray:
    """A row per mask: the image with its clicks, the truth, the mask after the first prompt and after the last round.

    Args:
        batch: whose images are there.
        points, labels: (B, Q, N, 2) and (B, Q, N), of the last round.
        first, last: (B, Q, L, L) masks at any one side.
        per_image: masks of each image that are drawn.
    """
    assert batch.images is not None
    side = batch.images.shape[1]
    rows = []
    for b, image in enumerate(batch.images):
        for q in np.flatnonzero(batch.valid[b])[:per_image]:
            clicks = [(tuple(xy), int(label)) for xy, label in zip(points[b, q], labels[b, q], strict=True)]
            shown = [(xy, label) for xy, label in clicks if label in (0, 1)]
            corners = [xy for xy, label in clicks if label in (2, 3)]
            boxes = [(*corners[0], *corners[1])] if len(corners) == 2 else []
            asked = draw_masks(image, [], [xy for xy, _ in shown], [label for _, label in shown], boxes)
            masks = [
                np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
                for mask in (batch.masks[b, q], first[b, q], last[b, q])
            ]
            rows.append(np.concatenate([asked, *(draw_masks(image, [mask]) for mask in masks)], 1))
    return np.concatenate(rows) if rows else np.zeros((1, 4, 3), np.uint8)
