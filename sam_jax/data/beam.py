"""Runs Apache Beam pipelines: on this machine without a server, elsewhere by Beam's own options."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sam_jax.errors import MissingPackage, UserError

POLL = 1.0  # seconds between two looks at what is finished


def split_options(text: str) -> list[str]:
    """Splits the options of a pipeline as a shell does.

    Raises:
        UserError: a quotation mark without its partner.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"expected options of Beam as in a shell, got {text!r}: {error}") from error


def open_pipeline(options: Sequence[str], workers: int = 1) -> Any:
    """Returns a `beam.Pipeline`, to be used in a `with` block; it runs when the block ends.

    Args:
        options: options of Beam's pipeline, such as --runner=FlinkRunner. Without a runner: Beam's own on this machine.
        workers: processes on this machine.

    Raises:
        MissingPackage: Beam is not installed.
    """
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    local = ["--default_sdk_harness_log_level=WARNING"]
    if workers > 1:
        local.append(f"--direct_num_workers={workers}")
    pipeline_options = PipelineOptions([*local, *options])
    if pipeline_options.view_as(StandardOptions).runner in (None, "DirectRunner"):
        runner: Any = _local_runner(pipeline_options, workers)
        # What goes wrong comes back as an exception; Beam would print its traceback in between.
        logging.getLogger("apache_beam.runners").setLevel(logging.CRITICAL)
    else:
        runner = None
    return beam.Pipeline(runner=runner, options=pipeline_options)


def import_beam() -> Any:
    """Returns Beam's module, imported without its warnings of packages for Google's cloud that are not installed.

    Raises:
        MissingPackage: Beam is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import apache_beam as beam
        import apache_beam.io.gcp.internal.clients.bigquery  # a pipeline imports it when it starts
    except ImportError as error:
        raise MissingPackage("this runs on Apache Beam; pip install 'sam_jax[beam]'") from error
    finally:
        logging.disable(before)
    return beam


@contextlib.contextmanager
def watching(look: Callable[[], None], every: float = POLL) -> Iterator[None]:
    """Calls `look` again and again in a thread while the block runs, and once at its end."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            look()
        look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _local_runner(options: Any, workers: int) -> Any:
    """Returns the runner that DirectRunner comes down to. By that name Beam would first look for one to download."""
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = fn_runner.ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    command = f"exec {shlex.quote(sys.executable)} -m sam_jax.data.beam_worker"  # exec: no shell that Ctrl-C would end
    processes = SubprocessSDKEnvironment.from_command_string(command) if workers > 1 else None
    return fn_runner.FnApiRunner(default_environment=processes, provision_info=info)
