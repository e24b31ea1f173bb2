"""What `sam-jax engine run` costs over `sam-jax everything`: the same pictures by both commands, taking turns.

    python benchmarks/engine_run.py FOLDER --rounds 2 -- --model tiny --preset paper

Both start anew each time, so start-up and compilation are in the figures; with --compiled they find programs that an
earlier turn has compiled. CPU seconds are of all threads, and what other work on the machine disturbs least.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.everything import find_pictures


@dataclasses.dataclass(frozen=True)
class Options:
    folder: tyro.conf.Positional[Path]
    """Pictures."""
    options: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="OPTIONS")] = ()
    """For both commands, after --."""
    rounds: int = 2
    """Turns of each."""
    compiled: bool = False
    """Keep compiled programs from turn to turn; the first turn of each is not counted."""


def measure(command: list[str]) -> tuple[float, float]:
    """(wall, CPU) seconds of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def main(options: Options) -> None:
    count = len(find_pictures([options.folder], Path("nowhere")))
    commands = {"everything": ["everything"], "engine run": ["engine", "run"]}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as work:
        if options.compiled:
            os.environ |= {
                "JAX_COMPILATION_CACHE_DIR": f"{work}/compiled",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        for turn in range(options.rounds + options.compiled):
            for name, command in commands.items():
                out = f"{work}/{name.replace(' ', '_')}_{turn}"
                given = [str(options.folder), "--out", out, *options.options]
                took = measure([sys.executable, "-m", "sam_jax.cli", *command, *given])
                print(f"turn {turn}, {name}: {took[0]:.1f} s, {took[1]:.1f} s of CPU", flush=True)
                if turn >= options.compiled:
                    seconds[name].append(took)
    for name, values in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(
            f"{name}: {count} pictures, {wall:.1f} s, {count / wall:.3f} pictures/s, {cpu / count:.2f} CPU s a picture"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
