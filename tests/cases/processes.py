"""Two processes that compute together, as two hosts would."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable


def parallel_options(address: str, process: int) -> list[str]:
    """Returns the options of train.py and eval.py for one of two processes."""
    return f"--parallel.coordinator {address} --parallel.processes 2 --parallel.process {process}".split()


def start_two(
    command: Callable[[str, int], list[str]], devices: int = 1, stderr: int | None = None
) -> list[subprocess.Popen]:
    """Starts Python twice, each with CPU devices of its own.

    Args:
        command: Called with an address that is free for the coordinator and the process's number, 0 or 1. It returns
            Python's arguments.
        devices: Devices of either process.
        stderr: As in `subprocess.Popen`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        subprocess.Popen([sys.executable, *command(address, process)], env=environment, stderr=stderr, text=True)
        for process in range(2)
    ]


def run_two(command: Callable[[str, int], list[str]], devices: int = 1) -> list[str]:
    """Runs both to their end and returns what each wrote to stderr. Fails unless both succeed."""
    processes = start_two(command, devices, stderr=subprocess.PIPE)
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return errors
