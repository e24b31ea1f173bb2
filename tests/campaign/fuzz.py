"""Gives damaged input to each reader, and notes what is no answer: a traceback, a hang, too much memory, code that ran.

An input follows from its kind and number alone, so that a failure is repeated by `python -m campaign.fuzz KIND
--start N --count 1`. Kinds run in processes of their own: a crash is a failure of one input, and the next goes on.
"""

import argparse
import contextlib
import io
import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

SECONDS = 10  # that an input may take, of this process's own time
MEMORY = 2 << 30  # bytes that an input may take


class Hang(BaseException):
    """An input took too long; no reader catches this."""


def run_kind(name: str, start: int, count: int, *, show: int = 20) -> dict[str, Any]:
    """Runs inputs number `start` to `start + count` of a kind in processes, and returns the totals."""
    totals: dict[str, Any] = {"kind": name, "inputs": 0, "taken": 0, "refused": 0, "slowest": 0.0, "peak_mib": 0}
    totals["failures"] = []
    end = start + count
    while start < end and len(totals["failures"]) < show:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            command = [sys.executable, "-m", "campaign.fuzz", name, "--start", str(start), "--count", str(end - start)]
            done = subprocess.run([*command, "--inside", folder, "--show", str(show)], capture_output=True, text=True)
            (position,) = struct.unpack("q", (Path(folder) / "position").read_bytes()[:8])
            result = json.loads((Path(folder) / "result.json").read_text())
        for key in ("inputs", "taken", "refused"):
            totals[key] += result[key]
        for key in ("slowest", "peak_mib"):
            totals[key] = max(totals[key], result[key])
        totals["failures"] += result["failures"]
        if done.returncode != 0:
            totals["inputs"] += 1
            totals["failures"].append(
                {"number": position, "what": f"exit {done.returncode}", "text": done.stderr[-2000:]}
            )
        start = position + 1
    return totals


def run_inside(name: str, start: int, count: int, folder: Path, show: int) -> None:
    """Runs inputs in this process; leaves the number of the present one and the totals in a folder."""
    with (folder / "position").open("w+b") as file:
        file.write(bytes(8))
        file.flush()
        position = mmap.mmap(file.fileno(), 8)
    result: dict[str, Any] = {"inputs": 0, "taken": 0, "refused": 0, "slowest": 0.0, "peak_mib": 0, "failures": []}
    position[:] = struct.pack("q", start)
    _save(folder, result)

    from campaign.inputs import KINDS
    from sam_jax.errors import EXPECTED_ERRORS

    kind = KINDS[name]
    with contextlib.chdir(folder):
        kind.prepare(folder)
    signal.signal(signal.SIGPROF, _stop)
    marker = folder / "CODE_RAN"
    os.environ["MARKER"] = str(marker)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(start, start + count):
        position[:] = struct.pack("q", number)
        began, what, text = time.process_time(), "", ""
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                kind.run(random.Random(f"{name} {number}"), folder)
            result["taken"] += 1
        except EXPECTED_ERRORS as error:
            result["refused"] += 1
            if isinstance(error, OSError) and not isinstance(error, ValueError) and not error.errno:
                what, text = "an OSError that no system call gave", traceback.format_exc()
        except Hang:
            what, text = f"more than {SECONDS} s", traceback.format_exc()
        except Exception as error:
            what, text = f"{type(error).__name__}: {str(error)[:200]}", traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if what:
            result["failures"].append({"number": number, "what": what, "text": text[-2500:]})
        if marker.exists():
            marker.unlink()
            result["failures"].append({"number": number, "what": "code in a file was executed", "text": ""})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (peak - before) << 10 > MEMORY and not kind.large:
            result["failures"].append({"number": number, "what": f"memory {(peak - before) >> 10} MiB", "text": ""})
            before = peak
        result["inputs"] += 1
        result["slowest"] = max(result["slowest"], round(time.process_time() - began, 2))
        result["peak_mib"] = max(result["peak_mib"], (peak - before) >> 10)
        if what or number % 100 == 0 or number == start + count - 1:
            _save(folder, result)
        if len(result["failures"]) >= show:
            break
    _save(folder, result)
    sys.stdout.flush()
    os._exit(0)  # threads of a server may wait for ever


def _save(folder: Path, result: dict[str, Any]) -> None:
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result))
    temporary.replace(folder / "result.json")


def _stop(*_: object) -> None:
    raise Hang


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="kinds of input; none: all")
    parser.add_argument("--start", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--count", type=int, help="inputs of each kind; by default as many as make 100,000 in all")
    parser.add_argument("--scale", type=float, default=1.0, help="part of those 100,000")
    parser.add_argument("--show", type=int, default=20, help="failures after which a kind is given up")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run_inside(options.kinds[0], options.start, options.count, options.inside, options.show)
    from campaign.inputs import KINDS

    failed = 0
    for name in options.kinds or KINDS:
        count = options.count or max(1, round(KINDS[name].count * options.scale))
        totals = run_kind(name, options.start, count, show=options.show)
        failed += len(totals["failures"])
        print(json.dumps({key: value for key, value in totals.items() if key != "failures"}), flush=True)
        for failure in totals["failures"]:
            print(f"{name} {failure['number']}: {failure['what']}\n{failure['text']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
