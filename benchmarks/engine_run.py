"""What `sam-jax engine run` costs over `sam-jax everything`: the same images by both commands, taking turns.

    python benchmarks/engine_run.py FOLDER --rounds 4 -- --model small --preset official --points-per-side 16

Both run in this process, and the first turn of each, which imports and compiles, does not count. CPU seconds are of all
threads, and what other work on the machine disturbs least.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.commands import main as cli
from sam_jax.data.images import find_images

COMMANDS = {"everything": ["everything"], "engine run": ["engine", "run"]}


@dataclasses.dataclass(frozen=True)
class Options:
    folder: tyro.conf.Positional[Path]
    """Images."""
    options: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="OPTIONS")] = ()
    """For both commands, after --."""
    rounds: int = 4
    """Turns of each."""


def measure(command: list[str]) -> tuple[float, float]:
    """(wall, CPU) seconds of a command."""
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main(command)
    if code:
        raise RuntimeError(f"sam-jax {' '.join(command)} ended with {code}: {errors.getvalue()}")
    return time.perf_counter() - wall, time.process_time() - cpu


def main(options: Options) -> None:
    count = len(find_images([options.folder], Path("nowhere")))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as work:
        for turn in range(options.rounds + 1):
            for name, command in COMMANDS.items():
                out = f"{work}/{name.replace(' ', '_')}_{turn}"
                took = measure([*command, str(options.folder), "--out", out, *options.options])
                print(f"turn {turn}, {name}: {took[0]:.2f} s, {took[1]:.2f} s of CPU", flush=True)
                if turn:
                    seconds[name].append(took)
    for name, values in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name}: {count} images, {count / wall:.2f} images/s, {1000 * cpu / count:.0f} ms of CPU an image")


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
