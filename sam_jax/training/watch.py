"""What can be seen of a run while it goes: numbers, for TensorBoard too, and curves."""

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

from sam_jax.files import append_line, read_text, replacing, write_atomically
from sam_jax.training.flops import peak_flops

Values = Mapping[str, float | Sequence[float]]


class MetricsLog:
    """Appends one JSON object per line to `metrics.jsonl`, and the same to TensorBoard if tensorboardX is installed.

    Args:
        out: the run's folder.
        first_step: steps that were taken before, 0 in a new run. What a run that was killed wrote after them is
            dropped: the resumed one writes it again.
        enabled: False writes nothing; of several processes one writes.
    """

    def __init__(self, out: Path, first_step: int, *, enabled: bool = True) -> None:
        self._path, self._tensorboard, self._enabled = out / "metrics.jsonl", None, enabled
        if not enabled:
            return
        if self._path.exists():
            records = read_metrics(out) if first_step else []  # a new run validates at step 0 itself
            kept = [json.dumps(record) + "\n" for record in records if record["step"] <= first_step]
            write_atomically(self._path, "".join(kept))
        with contextlib.suppress(ImportError):
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1 if first_step else 0)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, step: int, values: Values) -> None:
        if not self._enabled:
            return
        append_line(self._path, json.dumps({"step": step, **values}))
        if self._tensorboard is not None:
            for name, value in values.items():
                for i, number in enumerate(value if isinstance(value, Sequence) else (value,)):
                    tag = f"{name}/round_{i}" if isinstance(value, Sequence) else name
                    self._tensorboard.add_scalar(tag, number, step)


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that a kill has torn is left out."""
    records = []
    for line in read_text(out / "metrics.jsonl").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


class Clock:
    """Measures how fast a run is, and the fraction of time in which the devices waited for data.

    Args:
        batch_size: images of a step.
        devices: of all processes.
        flops: floating point operations of a step; None if they are not known.
    """

    def __init__(self, batch_size: int, devices: int, flops: float | None) -> None:
        self._batch_size, self._devices, self._flops = batch_size, devices, flops
        self._restart()

    def _restart(self) -> None:
        self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Once in every step, around what waits for its batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._steps += 1

    def speed(self, masks: float) -> dict[str, float]:
        """Returns means over the steps since the last call, for the log, and starts anew.

        Args:
            masks: of the last step, which stands for all of them.
        """
        elapsed = time.perf_counter() - self._start
        seconds, waited = elapsed / max(self._steps, 1), self._waited / elapsed
        self._restart()
        speed = {
            "seconds_per_step": seconds,
            "pictures_per_second": self._batch_size / seconds,
            "masks_per_second": masks / seconds,
            "data_wait_share": waited,
            "peak_memory_gib": peak_memory_gib(),
        }
        if self._flops is None:
            return speed
        speed["tflops_per_second"] = self._flops / seconds / 1e12
        peak = peak_flops(jax.devices()[0])
        return (
            speed
            if peak is None
            else speed | {"model_flop_utilisation": self._flops / seconds / (peak * self._devices)}
        )


class Trace:
    """Writes a profiler trace of some steps to `profile` in the run's folder, for TensorBoard or Perfetto.

    Args:
        steps: first and last step; None: no trace.
    """

    def __init__(self, out: Path, steps: tuple[int, int] | None) -> None:
        self._folder, self._running = out / "profile", False
        self._first, self._last = steps or (0, -1)

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def start(self, step: int) -> None:
        """Before every step; a run that is resumed between the two steps starts where it is."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def stop(self, step: int, results: Any) -> None:
        """After every step, with what the devices may still be computing."""
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
            self._running = False


def peak_memory_gib() -> float:
    """Of this process's first device, or of the process itself where the device does not say (a CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def plot_curves(out: Path, losses: Sequence[str], fractions: Sequence[str]) -> Path:
    """Draws `curves.png` in the run's folder: losses, and values from 0 to 1 in training and in validation.

    Args:
        losses, fractions: names in `metrics.jsonl`; a value may be a list with a number per round.
    """
    from matplotlib.figure import Figure

    records = read_metrics(out)
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, *right = figure.subplots(1, 3)
    for i, name in enumerate(losses):
        left.plot(*_curve(records, name, smooth=True), label=name, color=f"C{i % 10}")
        left.plot(*_curve(records, f"validation_{name}"), "o", ms=3, color=f"C{i % 10}")
    left.set(title="losses (dots: validation)", yscale="log", xlabel="step")
    left.legend()
    for axes, prefix, title in zip(right, ("", "validation_"), ("training", "validation"), strict=True):
        for name in fractions:
            rounds = next((len(r[prefix + name]) for r in records if isinstance(r.get(prefix + name), list)), None)
            if rounds is None:
                axes.plot(*_curve(records, prefix + name, smooth=not prefix), label=name)
            for i in range(rounds or 0):
                axes.plot(*_curve(records, prefix + name, i, smooth=not prefix), label=f"{name}, round {i}")
        axes.set(title=title, ylim=(0, 1), xlabel="step")
        axes.legend(ncols=2, fontsize="small")
    path = out / "curves.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    return path


def _curve(
    records: Sequence[Mapping[str, Any]], name: str, index: int | None = None, *, smooth: bool = False
) -> tuple[list[int], Sequence[float] | np.ndarray]:
    """The steps where something was logged, and its values."""
    found = [(r["step"], r[name] if index is None else r[name][index]) for r in records if name in r]
    values = [value for _, value in found]
    return [step for step, _ in found], _smooth(values) if smooth else values


def _smooth(values: Sequence[float], window: int = 9) -> np.ndarray:
    """A running mean, of fewer values at the ends."""
    if not values:  # a run shorter than `log_every`
        return np.array([])
    window = min(window, len(values))
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
