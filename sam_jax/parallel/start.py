"""Finds and connects the processes of a run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax

from sam_jax.config import ParallelConfig
from sam_jax.errors import UserError

# What names the other hosts or the tasks of a job, per launcher; JAX reads addresses and numbers from the same.
_LAUNCHERS = {
    "TPU pod": "TPU_WORKER_HOSTNAMES",
    "multislice": "MEGASCALE_COORDINATOR_ADDRESS",
    "SLURM": "SLURM_STEP_NUM_TASKS",
    "Open MPI": "OMPI_COMM_WORLD_SIZE",
}


def detect_launcher() -> str | None:
    """Returns the launcher that started several processes of this run, by its environment variables, or None."""
    for name, variable in _LAUNCHERS.items():
        value = os.environ.get(variable, "")
        count = int(value) if value.isdigit() else len([part for part in value.split(",") if part])
        if count > 1 or (name == "multislice" and value):
            return name
    return None


def find_process() -> tuple[int, int]:
    """Returns the index and the number of processes by the launcher's variables; (0, 1) without a launcher.

    The processes are not connected: this serves work that is split once and needs no messages in between.

    Raises:
        ValueError: the variables say that there are several processes, but not which this is.
    """
    launcher = detect_launcher()
    if launcher is None:
        return 0, 1
    try:
        if launcher in ("TPU pod", "multislice"):
            hosts = len([host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]) or 1
            slices = int(os.environ.get("MEGASCALE_NUM_SLICES", "1"))
            host = int(os.environ["TPU_WORKER_ID"]) if hosts > 1 else 0
            return (int(os.environ["MEGASCALE_SLICE_ID"]) if slices > 1 else 0) * hosts + host, slices * hosts
        rank = {"SLURM": "SLURM_PROCID", "Open MPI": "OMPI_COMM_WORLD_RANK"}[launcher]
        return int(os.environ[rank]), int(os.environ[_LAUNCHERS[launcher]])
    except (KeyError, ValueError) as error:
        raise UserError(f"{launcher} started several processes, but not said which this is ({error})") from error


def start_processes(config: ParallelConfig) -> None:
    """Connects this process with the others, if there are any. Call it before JAX is used; later calls do nothing.

    Args:
        config: explicit addresses; without them TPU pods, SLURM and Open MPI are detected.

    Raises:
        ValueError: incomplete addresses.
    """
    explicit = (config.coordinator, config.processes, config.process)
    if any(value is not None for value in explicit):
        if any(value is None for value in explicit):
            raise UserError(
                "expected parallel.coordinator (host:port of process 0), parallel.processes and parallel.process "
                f"together, got {explicit}"
            )
        if not 0 <= (config.process or 0) < (config.processes or 0):
            raise UserError(f"expected parallel.process in 0..{(config.processes or 0) - 1}, got {config.process}")
        if not jax.distributed.is_initialized():
            jax.distributed.initialize(*explicit)
    elif jax.distributed.is_initialized():
        return
    elif detect_launcher():
        jax.distributed.initialize()
    elif any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        # Perhaps a host of a TPU pod, whose metadata JAX asks; it raises ValueError where there are none.
        with contextlib.suppress(ValueError):
            jax.distributed.initialize()
