"""Breaks every command that writes: killed at each change of its files or at random, on a full or a read-only disk.

After each, the same command runs once more and must come to the result of an uninterrupted one; where that was there
already, it may say what it says to its own result: `prepare` refuses to write over it. A fault is repeated by
`python -m campaign.faults COMMAND --fault kill --at N`. Linux with a C compiler is needed: `faults.c` is preloaded into
this process, which forks one that breaks for each fault, so that what commands import is imported once.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 240  # after which a command is taken to hang
FAULTS = ("kill", "half", "full")
SOURCE = Path(__file__).with_name("faults.c")
SETTINGS = {  # all programs of JAX's are compiled once, quickly
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # negative: by that signal
    value: Any
    changes: int  # of the folder's files
    seconds: float
    text: str  # what was printed


class Faults:
    """Runs functions in forked processes, in which a fault is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._counter = mmap.mmap(-1, mmap.PAGESIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._counter))

    def run(self, function: Callable[[], Any], fault: str = "", at: int = 0, *, after: float | None = None) -> Ended:
        """Runs a function to its end.

        Args:
            fault: one of FAULTS, at change number `at` of the files in `out`.
            after: seconds until it is killed.
        """
        self._counter[:8] = bytes(8)
        log, value = self.folder / "log", self.folder / "value"
        value.unlink(missing_ok=True)
        began = time.monotonic()
        child = os.fork()
        if not child:
            self._run_inside(function, fault, at, log, value)
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it has gone on, or ended
            os.setpgid(child, child)  # here, too: a kill may come before it does so itself
        ended = self._wait(child, after)
        seconds = time.monotonic() - began
        found = pickle.loads(value.read_bytes()) if value.exists() else None
        changes = int.from_bytes(self._counter[:8], "little")
        return Ended(ended, found, changes, seconds, log.read_text(errors="replace"))

    def _run_inside(self, function: Callable[[], Any], fault: str, at: int, log: Path, value: Path) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            watched = os.fsencode(self.folder / "work" / "out")
            self._library.campaign_arm(watched, fault.encode(), at, ctypes.c_void_p(self._address))
            found = function()
            whole = value.with_suffix(".tmp")  # a kill at random may come here, too
            whole.write_bytes(pickle.dumps(found))
            whole.replace(value)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def _wait(child: int, after: float | None) -> int:
        end = time.monotonic() + (SECONDS if after is None else after)
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(-child, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                return code if after is not None else -signal.SIGALRM
            time.sleep(0.002 if after is not None else 0.01)


class Trial:
    """One command, its inputs and the result of an uninterrupted run."""

    def __init__(self, command: Any, faults: Faults) -> None:
        self.command, self.faults = command, faults
        self.template, self.work = faults.folder / "template", faults.folder / "work"
        shutil.rmtree(self.template, ignore_errors=True)
        self._expect(faults.run(lambda: command.prepare(self.template)))
        self._restore()
        self._expect(faults.run(lambda: command.run(self.work)))  # what is compiled is at hand from here on
        self._restore()
        whole = faults.run(lambda: command.run(self.work))
        self._expect(whole)
        assert whole.value == 0, whole.text
        self.changes, self.seconds = whole.changes, whole.seconds
        self.expected = self._result()
        assert self.expected, "nothing is compared"
        again = self._expect(faults.run(lambda: command.run(self.work)))
        self.once_done = again.value  # 2: the command refuses what is there, as it should
        assert self._result() == self.expected, "a second run has another result"

    @staticmethod
    def _expect(ended: Ended) -> Ended:
        assert ended.code == 0, ended.text
        return ended

    def _restore(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work)

    def _result(self) -> Any:
        return self._expect(self.faults.run(lambda: self.command.result(self.work))).value

    def break_and_go_on(self, fault: str, at: int, after: float | None = None) -> str:
        """Runs the command with a fault and then without; returns what was wrong, or nothing."""
        self._restore()
        broken = self.faults.run(lambda: self.command.run(self.work), fault, at, after=after)
        if wrong := self._judge(broken, fault):
            return f"{wrong}\n{broken.text[-1500:]}"
        again = self.faults.run(self._go_on)
        if again.code != 0 or again.value[0] not in (0, self.once_done):
            return f"the same command again: exit {again.value[0] if again.value else again.code}\n{again.text[-1500:]}"
        if "Traceback" in again.text:
            return f"the same command again printed a traceback\n{again.text[-1500:]}"
        result = again.value[1]
        if result == self.expected:
            return ""
        wrong = f"exit {again.value[0]}, another result than that of the uninterrupted command"
        return f"{wrong}\n{_difference(self.expected, result)}\n{again.text[-500:]}"

    def _go_on(self) -> tuple[int, Any]:
        """Looks at what the fault has left, runs the command again, and returns its exit code and its result."""
        self.command.intact(self.work)
        code = self.command.run(self.work)
        return code, self.command.result(self.work) if code in (0, self.once_done) else None

    @staticmethod
    def _judge(broken: Ended, fault: str) -> str:
        if broken.code == -signal.SIGALRM:
            return f"hangs for {SECONDS} s"
        if fault != "full":
            return "" if broken.code in (-signal.SIGKILL, 0) else f"ended by {broken.code}"
        if broken.code != 0:
            return f"no answer but exit {broken.code}"
        if "Traceback" in broken.text:
            return "a traceback"
        if broken.value not in (0, 2):  # 0: what found no space was not needed
            return f"exit {broken.value}"
        return "" if broken.value == 0 or "space" in broken.text else "no word of space"

    def read_only(self) -> str:
        """Runs the command where nothing can be written; returns what was wrong."""
        self._restore()
        (self.work / "out").mkdir(exist_ok=True)
        mounted = _mount(self.work / "out")
        try:
            broken = self.faults.run(lambda: self.command.run(self.work))
        finally:
            if mounted:
                subprocess.run(["umount", self.work / "out"], check=True)
            (self.work / "out").chmod(0o755)
        if broken.code != 0 or broken.value != 2 or "Traceback" in broken.text:
            return f"exit {broken.code or broken.value}\n{broken.text[-1500:]}"
        return ""


def _difference(expected: Any, found: Any) -> str:
    if type(expected) is type(found) and isinstance(expected, dict) and expected.keys() == found.keys():
        return "\n".join(
            f"{key}: {_difference(expected[key], found[key])}" for key in expected if expected[key] != found[key]
        )
    if type(expected) is type(found) and isinstance(expected, list | tuple) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return "\n".join(f"{i}: {_difference(old, new)}" for i, (old, new) in pairs if old != new)
    return f"expected {str(expected)[:300]}, got {str(found)[:300]}"


def _mount(folder: Path) -> bool:
    """Makes a folder read-only: root is not stopped by its mode, and gets a file system that is."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        return False
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    return True


def run_command(command: Any, faults: Faults, options: argparse.Namespace) -> dict[str, Any]:
    """Runs all trials of a command, and returns the totals."""
    began = time.monotonic()
    trial = Trial(command, faults)
    totals: dict[str, Any] = {"command": command.name, "changes": trial.changes, "seconds": round(trial.seconds, 1)}
    failures: list[str] = []
    for fault, at, after in _plan(trial, options):
        wrong = trial.break_and_go_on(fault, at, after)
        name = fault if after is None else "random"
        totals[name] = totals.get(name, 0) + 1
        if wrong:
            where = f"--fault {fault} --at {at}" if after is None else f"killed after {after:.3f} s"
            failures.append(f"{command.name} {where}: {wrong}")
        if len(failures) >= options.show:
            break
    if not options.fault:
        wrong = trial.read_only()
        totals["read-only"] = 1
        failures += [f"{command.name} read-only: {wrong}"] if wrong else []
    return totals | {"failures": failures, "wall": round(time.monotonic() - began)}


def _plan(trial: Trial, options: argparse.Namespace) -> Iterator[tuple[str, int, float | None]]:
    if options.at is not None:
        yield options.fault or "kill", options.at, None
        return
    for fault in [options.fault] if options.fault else FAULTS:
        most = min(trial.changes, options.most)
        for i in range(most):
            yield fault, 1 + i * trial.changes // most, None
    if not options.fault:
        rng = random.Random(trial.command.name)
        for _ in range(options.random):
            yield "", 0, rng.uniform(0, trial.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", help="names; none: all")
    parser.add_argument("--fault", choices=FAULTS, help="only this one")
    parser.add_argument("--at", type=int, help="only at this change")
    parser.add_argument("--most", type=int, default=10_000, help="changes, evenly spread, at which each fault comes")
    parser.add_argument("--random", type=int, default=200, help="kills at random times")
    parser.add_argument("--show", type=int, default=10, help="failures after which a command is given up")
    options = parser.parse_args()
    if "LD_PRELOAD" not in os.environ:
        return _with_library()
    _import_all()
    from campaign.commands import COMMANDS

    failed = 0
    with tempfile.TemporaryDirectory(prefix="campaign_") as folder:
        for name in options.commands or COMMANDS:
            totals = run_command(COMMANDS[name], Faults(Path(folder)), options)
            failures = totals.pop("failures")
            print(json.dumps(totals | {"failures": len(failures)}), flush=True)
            print(*failures, sep="\n", end="\n" if failures else "", flush=True)
            failed += len(failures)
    return 1 if failed else 0


def _with_library() -> int:
    """Runs this program again with the library that makes the faults."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        print("faults are made by a small C library: Linux and a compiler (cc) are needed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "faults.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        environment = os.environ | SETTINGS | {"LD_PRELOAD": str(library)}
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        return subprocess.run([sys.executable, "-m", "campaign.faults", *sys.argv[1:]], env=environment).returncode


def _import_all() -> None:
    """Imports and traces what commands would while they run; nothing may start a thread, since forks would lack it."""
    import apache_beam
    import array_record.python.array_record_module
    import fastapi.testclient
    import grain
    import matplotlib.pyplot
    import orbax.checkpoint
    import tensorboardX
    import tensorflow_datasets
    import torch

    import sam_jax.app.server
    import sam_jax.commands.main
    import sam_jax.data.builders
    import sam_jax.data.prepare
    import sam_jax.data.prepared
    import sam_jax.engine.automatic.run
    import sam_jax.everything.folders
    import sam_jax.training.loop

    del apache_beam, array_record, fastapi, grain, matplotlib, orbax, tensorboardX, tensorflow_datasets, torch, sam_jax

    from campaign.checkpoint_inputs import CONFIG
    from sam_jax.checkpoints import expected_shapes

    expected_shapes(CONFIG)


if __name__ == "__main__":
    sys.exit(main())
