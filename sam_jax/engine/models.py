"""Model versions: where each came from, what it was trained on, what it is worth, and which one is in use.

The store has the truth; `models/0002/model.json` is a copy for people and other programs.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any, Literal

from sam_jax.engine.statements import log, now
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.files import make_folder, write_atomically

Kind = Literal["sam", "detector"]
ModelState = Literal["training", "dropped", "candidate", "refused", "promoted"]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How good a model is on a version of the held-out images."""

    version: int
    miou: float  # percent, after one click
    masks: int


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    number: int
    kind: Kind
    state: ModelState
    at: str  # UTC, of the last change of state
    source: str  # name, or path of the checkpoint, below the project where it was trained here
    parent: int | None = None  # that it started from
    dataset: int | None = None  # version that it was trained on
    config: list[str] = dataclasses.field(default_factory=list)  # path of the config and overrides
    held_out: HeldOut | None = None


def models_folder(store: Store, number: int) -> Path:
    return store.folder / "models" / f"{number:04d}"


def load_name(store: Store, model: ModelVersion) -> str:
    """What `hub.load_model` takes."""
    path = store.folder / model.source
    return str(path) if path.exists() else model.source


def describe(model: ModelVersion) -> str:
    """Under which name masks remember the model that drew them."""
    return f"{model.kind} {model.number}"


def model_in_use(store: Store, given: str | None = None) -> tuple[str, str]:
    """(what `hub.load_model` takes, the name under which masks remember it) of a project.

    Args:
        given: name or path of another model than the project's. A project without one has `tiny`.
    """
    current = current_model(store)
    if given is None and current is not None:
        return load_name(store, current), describe(current)
    return given or "tiny", given or "tiny"


def list_models(store: Store, kind: Kind | None = None) -> list[ModelVersion]:
    """All versions, oldest first."""
    models = [_read(row) for row in store.rows("SELECT record FROM models ORDER BY number")]
    return [model for model in models if kind in (None, model.kind)]


def current_model(store: Store, kind: Kind = "sam") -> ModelVersion | None:
    """The one that was promoted last."""
    promoted = [model for model in list_models(store, kind) if model.state == "promoted"]
    return max(promoted, key=lambda model: model.at, default=None)


def add_model(store: Store, kind: Kind, state: ModelState, source: str, **fields: Any) -> ModelVersion:
    """Notes a new version under the next number.

    Args:
        source: `{number}` stands for that number, with four digits.
    """
    with store.transaction() as db:
        number = 1 + db.execute("SELECT coalesce(max(number), 0) FROM models").fetchone()[0]
        model = ModelVersion(number, kind, state, now(), source.format(number=f"{number:04d}"), **fields)
        db.execute("INSERT INTO models VALUES (?, ?, ?)", (number, model.at, _to_json(model)))
        log(db, "model", dataclasses.asdict(model))
    _write_copy(store, model)
    return model


def change_model(
    store: Store, model: ModelVersion, state: ModelState, held_out: HeldOut | None = None, reason: str = ""
) -> ModelVersion:
    """Notes another state, or what a model is worth.

    Raises:
        ValueError: somebody else has changed it.
    """
    at = model.at if state == model.state else now()
    changed = dataclasses.replace(model, state=state, at=at, held_out=held_out or model.held_out)
    with store.transaction() as db:
        row = db.execute("SELECT record FROM models WHERE number = ?", (model.number,)).fetchone()
        if row is None or _read(row) != model:
            raise UserError(f"model {model.number} was changed by another command meanwhile; see its status")
        db.execute("UPDATE models SET record = ? WHERE number = ?", (_to_json(changed), model.number))
        log(db, "model", dataclasses.asdict(changed) | {"reason": reason})
    _write_copy(store, changed)
    return changed


def _to_json(model: ModelVersion) -> str:
    return json.dumps(dataclasses.asdict(model))


def _read(row: sqlite3.Row) -> ModelVersion:
    fields = json.loads(row["record"])
    held_out = fields["held_out"]
    return ModelVersion(**fields | {"held_out": None if held_out is None else HeldOut(**held_out)})


def _write_copy(store: Store, model: ModelVersion) -> None:
    folder = models_folder(store, model.number)
    make_folder(folder)
    write_atomically(folder / "model.json", json.dumps(dataclasses.asdict(model), indent=1))
