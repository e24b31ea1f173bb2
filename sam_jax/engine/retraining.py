"""Training the project's next model, or its detector, on what was annotated so far."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sam_jax.config_file import is_file_name, load_config
from sam_jax.engine.datasets import freeze, version_folder
from sam_jax.engine.models import (
    Kind,
    ModelVersion,
    add_model,
    change_model,
    current_model,
    describe,
    list_models,
    load_name,
    models_folder,
)
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.files import copy, make_folder, remove

OWN_CONFIGS: dict[Kind, str] = {"sam": "engine_model", "detector": "engine_detector"}  # shipped configs


def retrain(
    store: Store,
    kind: Kind = "sam",
    config: str | None = None,
    overrides: Sequence[str] = (),
    automatic: Sequence[Path] = (),
) -> ModelVersion:
    """Freezes a dataset version and trains on it, from the current model on.

    A run that was stopped goes on with the next call, on the same data and with the same config, and ends with the
    same model.

    Args:
        config: name of a shipped config for training, or path of a file; out, data.path and init_from become the
            project's. None: the one in `OWN_CONFIGS`.
        overrides: FIELD=VALUE, fields of the config named as for `sam-jax train`.
        automatic: see `freeze`.

    Returns:
        The version: a candidate if it is a SAM model; a detector is in use at once, since the share of its masks that
        people keep is what it is judged by. Still in training if it was asked to stop.

    Raises:
        ValueError: nothing to train on, a config of the other kind, a run that was started with another config, or one
            that is under way.
        FileNotFoundError: no such config.
    """
    if bad := [text for text in overrides if "=" not in text]:
        raise UserError(f"expected FIELD=VALUE, such as steps=500, got {bad[0]!r}")
    name = config or OWN_CONFIGS[kind]
    arguments = [str(Path(name).resolve()) if is_file_name(name) else name, *(f"--{text}" for text in overrides)]
    with _only_one(store, kind):
        return _retrain(store, kind, arguments, automatic, given=bool(config or overrides))


@contextlib.contextmanager
def _only_one(store: Store, kind: Kind) -> Iterator[None]:
    """Keeps other processes from training the same; one that dies lets go."""
    folder = store.folder / "models"
    make_folder(folder)
    try:
        with FileLock(folder / f".{kind}.lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"a {kind} of {store.folder} is in training in another process; wait for it") from error


def _retrain(store: Store, kind: Kind, arguments: list[str], automatic: Sequence[Path], *, given: bool) -> ModelVersion:
    model = next((m for m in list_models(store, kind) if m.state == "training"), None)
    if model is not None and given and model.config != arguments:
        raise UserError(
            f"model {model.number} is still in training, with {' '.join(model.config)}; say the same, or nothing, to "
            "go on with it"
        )
    start = current_model(store)
    if start is None:
        raise UserError(f"{store.folder} has no model to start from; give it one with sam-jax engine init --model")
    if model is None:
        _read_config(kind, arguments)  # before data are frozen for it
        dataset = freeze(store, "train", automatic)
        model = add_model(
            store,
            kind,
            "training",
            "models/{number}/model.safetensors",
            parent=start.number,
            dataset=dataset.number,
            config=arguments,
        )
    return _run(store, model)


def drop_training(store: Store, kind: Kind) -> ModelVersion | None:
    """Gives up the run that was stopped, if there is one.

    Raises:
        ValueError: it is under way.
    """
    with _only_one(store, kind):
        model = next((m for m in list_models(store, kind) if m.state == "training"), None)
        if model is None:
            return None
        remove(models_folder(store, model.number) / "run")
        return change_model(store, model, "dropped", reason="given up before it was trained")


def _read_config(kind: Kind, arguments: Sequence[str]) -> Any:
    from sam_jax.training.detector.config import DetectorTrainConfig

    config = load_config(arguments, "train")
    if isinstance(config, DetectorTrainConfig) != (kind == "detector"):
        raise UserError(f"expected a config that trains a {kind}, {arguments[0]} has a {type(config).__name__}")
    return config


def _run(store: Store, model: ModelVersion) -> ModelVersion:
    from sam_jax.checkpoints.hub import load_model
    from sam_jax.training.loop import train

    assert model.dataset is not None
    (parent,) = [m for m in list_models(store) if m.number == model.parent]
    config, out = _read_config(model.kind, model.config), models_folder(store, model.number) / "run"
    data = dataclasses.replace(
        config.data, path=version_folder(store, "train", model.dataset).resolve(), format="sa1b", images=None
    )
    config = dataclasses.replace(config, out=out, data=data, init_from=load_name(store, parent))
    if model.kind == "sam":
        config = dataclasses.replace(config, model_from_init=True)
    elif model.config[0] == OWN_CONFIGS["detector"]:
        encoder = load_model(load_name(store, parent)).config.encoder
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder))
    result = train(config, resume=(out / "config.json").exists())
    if not result.finished:
        return model  # SIGTERM or Ctrl-C
    target = store.folder / model.source
    copy(result.path, target)
    remove(out / "embeddings")
    reason = f"trained on dataset {model.dataset} from {describe(parent)}"
    return change_model(store, model, "candidate" if model.kind == "sam" else "promoted", reason=reason)
