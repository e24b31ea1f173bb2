"""A run's folder, the packages that it takes, and the signal that stops it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from sam_jax.errors import AlreadyExists, MissingPackage, UserError
from sam_jax.files import make_folder, read_json, write_atomically
from sam_jax.progress import ProgressBar

RECORD = "config.json"  # in a run's folder
# The fields of a config that the params and moments in a checkpoint follow from; of OPTIONAL, whether they are None.
FIXED = re.compile(r"(model\..*|finetune\.(trainable|lora_rank|lora_targets)|text\.clip)")
OPTIONAL = ("ema_decay", "optimizer.clip_norm")


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current step or image; a second one acts at once.

    Of several processes all stop after the same step: JAX tells the others of a SIGTERM to one.
    """

    def __enter__(self) -> StopSignal:
        self._several = jax.process_count() > 1
        self._requested = False
        signals = () if self._several else (signal.SIGTERM, signal.SIGINT)
        self._previous = {s: signal.signal(s, self._request) for s in signals}
        return self

    def requested(self, step: int) -> bool:
        """To be asked by all processes after every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def check(self) -> None:
        """To be called between images that are encoded before the first step.

        Raises:
            KeyboardInterrupt: this process was asked to stop.
        """
        if self._requested:
            raise KeyboardInterrupt

    def _request(self, number: int, frame: object) -> None:
        self._requested = True
        ProgressBar.write("stopping after this step or image; the run can be resumed with --resume")
        signal.signal(number, self._previous[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def refuse_other_run(out: Path, resume: bool) -> None:
    """Before anything is loaded: a folder that holds a run is for going on with it."""
    if (out / RECORD).exists() and not resume:
        raise AlreadyExists(f"{out} holds another run; say --resume to go on with it, or give another --out")


def claim_folder(out: Path, config: Any, resume: bool) -> None:
    """Writes the config into the run's folder, if it is this run's.

    Raises:
        AlreadyExists: there is a run, and `resume` is False.
        UserError: the run's checkpoints do not fit the config, or its record cannot be used. Nothing is written.
    """
    refuse_other_run(out, resume)  # again: one may have begun while the model was made
    record = out / RECORD
    fields = dataclasses.asdict(config) | {"model": config.model.to_fields()}
    text = json.dumps(fields, default=str, indent=1)
    if record.exists():
        _check_resumed(out, read_json(record), json.loads(text))
    make_folder(out)
    write_atomically(record, text)


def _check_resumed(out: Path, before: Any, now: dict[str, Any]) -> None:
    """Refuses another config than the run's where its checkpoints would not fit; says which other fields differ.

    Args:
        before, now: the configs as JSON. What only one of them has is of another version of this package.
    """
    if not (isinstance(before, dict) and isinstance(before.get("model"), dict)):
        raise UserError(f"expected the config of a run in {out / RECORD}, found something else; restore that file")
    old, new = (flatten_dict(fields, sep=".") for fields in (before, now))
    changed = {
        name: f"{name.replace('_', '-')} {new[name]} (was {old[name]})"
        for name in new
        if name in old and old[name] != new[name] and name != "out"
    }
    refused = [
        name
        for name in changed
        if FIXED.fullmatch(name) or (name in OPTIONAL and (old[name] is None) != (new[name] is None))
    ]
    others = ", ".join(text for name, text in changed.items() if name not in refused)
    if refused:
        raise UserError(
            f"the checkpoints of the run in {out} do not fit another {', '.join(changed[name] for name in refused)}; "
            f"give what it was, or another --out for a new run"
            + (f". Other fields that differ, which would be taken: {others}" if others else "")
        )
    if others:
        ProgressBar.write(f"the run goes on with other {others}")


def check_packages(names: Sequence[str]) -> None:
    """Refuses a run that would miss a package later on, after hours maybe.

    Raises:
        MissingPackage: one is not installed.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise MissingPackage(f"training takes {', '.join(missing)} too; pip install 'sam_jax[train]'")
