"""Model versions: where each came from, what it was trained on, how good it is, and which one is in use.

The store is authoritative; `models/0002/model.json` is a copy for people and other programs.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any, Literal

from sam_jax.checkpoints.hub import EMBEDDED, REPLACED
from sam_jax.engine.statements import log_event, now, reading_record
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.files import make_folder, write_atomically

Kind = Literal["sam", "detector"]
ModelState = Literal["training", "dropped", "candidate", "refused", "promoted"]


@dataclasses.dataclass(frozen=True)
class HeldOutMetrics:
    """How good a model is on a version of the held-out images."""

    version: int
    miou: float  # percent, after one click
    masks: int


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """A model or detector of a project, and how it came to be."""

    number: int
    kind: Kind
    state: ModelState
    at: str  # UTC, of the last change of state
    source: str  # name or path of the checkpoint; relative to the project if it was trained there
    parent: int | None = None  # number of the model that training started from
    dataset: int | None = None  # number of the dataset version that it was trained on
    config: list[str] = dataclasses.field(default_factory=list)  # name or path of the training config, and overrides
    held_out: HeldOutMetrics | None = None


def model_folder(store: Store, number: int) -> Path:
    """Returns the folder of a model version, whether it exists or not."""
    return store.folder / "models" / f"{number:04d}"


def load_name(store: Store, model: ModelVersion) -> str:
    """Returns the name or path by which `checkpoints.hub.load_model` loads a model version.

    Raises:
        UserError: the package no longer has the model; the message says how to go on.
    """
    if (successor := replacement_of(store, model)) is not None:
        raise UserError(
            f"{describe(model)} of {store.folder} is {model.source!r}, which is no longer in the package; go on with "
            f"{successor!r}, which replaced it: sam-jax engine init {store.folder} --images FOLDER --model {successor}"
        )
    path = store.folder / model.source
    return str(path) if path.exists() else model.source


def replacement_of(store: Store, model: ModelVersion) -> str | None:
    """Returns the name that took the place of a model's in the package; None if the model is still to be had."""
    return None if (store.folder / model.source).exists() else REPLACED.get(model.source)


def describe(model: ModelVersion) -> str:
    """Returns the name that is stored with masks that the model draws, such as "sam 2"."""
    return f"{model.kind} {model.number}"


def model_in_use(store: Store, given: str | None = None) -> tuple[str, str]:
    """Returns what `checkpoints.hub.load_model` takes, and the name that is stored with masks, for a project's model.

    Args:
        given: name or path of a model to use instead of the project's. A project without a model uses `small`.
    """
    current = current_model(store)
    if given is None and current is not None:
        return load_name(store, current), describe(current)
    return given or EMBEDDED, given or EMBEDDED


def list_models(store: Store, kind: Kind | None = None) -> list[ModelVersion]:
    """Returns all versions, or those of one kind, oldest first."""
    models = [_read(row) for row in store.rows("SELECT record FROM models ORDER BY number")]
    return [model for model in models if kind in (None, model.kind)]


def current_model(store: Store, kind: Kind = "sam") -> ModelVersion | None:
    """Returns the version that is in use, which is the one promoted last; None if none was."""
    promoted = [model for model in list_models(store, kind) if model.state == "promoted"]
    return max(promoted, key=lambda model: model.at, default=None)


def add_model(store: Store, kind: Kind, state: ModelState, source: str, **fields: Any) -> ModelVersion:
    """Records a new version under the next number, and returns it.

    Args:
        source: see `ModelVersion`; `{number}` in it is replaced by the number, with four digits.
        fields: further fields of `ModelVersion`.
    """
    with store.transaction() as db:
        number = 1 + db.execute("SELECT coalesce(max(number), 0) FROM models").fetchone()[0]
        model = ModelVersion(number, kind, state, now(), source.format(number=f"{number:04d}"), **fields)
        db.execute("INSERT INTO models VALUES (?, ?, ?)", (number, model.at, _to_json(model)))
        log_event(db, "model", dataclasses.asdict(model))
    _write_copy(store, model)
    return model


def change_model(
    store: Store, model: ModelVersion, state: ModelState, held_out: HeldOutMetrics | None = None, reason: str = ""
) -> ModelVersion:
    """Records a model's new state or metrics, and returns the changed version.

    Args:
        reason: why, for the project's log of events.

    Raises:
        UserError: another process has changed the version meanwhile.
    """
    at = model.at if state == model.state else now()
    changed = dataclasses.replace(model, state=state, at=at, held_out=held_out or model.held_out)
    with store.transaction() as db:
        row = db.execute("SELECT record FROM models WHERE number = ?", (model.number,)).fetchone()
        if row is None or _read(row) != model:
            raise UserError(f"model {model.number} was changed by another command meanwhile; see its status")
        db.execute("UPDATE models SET record = ? WHERE number = ?", (_to_json(changed), model.number))
        log_event(db, "model", dataclasses.asdict(changed) | {"reason": reason})
    _write_copy(store, changed)
    return changed


def _to_json(model: ModelVersion) -> str:
    return json.dumps(dataclasses.asdict(model))


def _read(row: sqlite3.Row) -> ModelVersion:
    with reading_record("model"):
        fields = json.loads(row["record"])
        held_out = fields["held_out"]
        return ModelVersion(**fields | {"held_out": None if held_out is None else HeldOutMetrics(**held_out)})


def _write_copy(store: Store, model: ModelVersion) -> None:
    folder = model_folder(store, model.number)
    make_folder(folder)
    write_atomically(folder / "model.json", json.dumps(dataclasses.asdict(model), indent=1))
