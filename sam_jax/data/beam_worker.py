"""A worker process of a pipeline on this machine: Beam's own, without Beam's messages about itself.

`sam_jax.data.beam` starts it as `python -m sam_jax.data.beam_worker`, with what it needs in the environment.
"""

from __future__ import annotations

import logging
import os
import signal
import sys


def main() -> None:
    """Works until the pipeline has ended."""
    from sam_jax.data.beam import import_beam
    from sam_jax.progress import show_warnings

    signal.signal(signal.SIGINT, lambda *_: os._exit(0))  # Ctrl-C is told by the process that started this one
    logging.getLogger("apache_beam").setLevel(logging.ERROR)  # each worker would tell which of its options it ignores
    import_beam()
    from apache_beam.runners.worker import sdk_worker_main

    with show_warnings():
        sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
