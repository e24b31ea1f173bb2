"""Training of a project's next model, or its detector, on the annotations so far."""

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
    model_folder,
    replacement_of,
)
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.files import copy, make_folder, remove

DEFAULT_CONFIGS: dict[Kind, str] = {"sam": "engine_model", "detector": "engine_detector"}  # names of shipped configs


def retrain(
    store: Store,
    kind: Kind = "sam",
    config: str | None = None,
    overrides: Sequence[str] = (),
    automatic: Sequence[Path] = (),
) -> ModelVersion:
    """Freezes a dataset version and trains a model on it, starting from the current model.

    If an earlier run was stopped, it is resumed with the same data and config, and ends with the model that an
    uninterrupted run gives.

    Args:
        kind: sam for the model that draws masks, detector for the one that finds boxes.
        config: name of a shipped training config, or path of a config file. Its fields out, data.path and init_from
            are set to those of the project. None means the one in `DEFAULT_CONFIGS`.
        overrides: FIELD=VALUE, with the names of fields as for `sam-jax train`.
        automatic: see `freeze`.

    Returns:
        The new version. A SAM model is a candidate, to be promoted. A detector is used at once, since it is judged by
        the fraction of its masks that people keep. The version is still in training if the run was interrupted.

    Raises:
        UserError: there is nothing to train on, the config trains the other kind, the stopped run had another config,
            or a run is in progress in another process.
        MissingFile: the config does not exist.
    """
    if bad := [text for text in overrides if "=" not in text]:
        raise UserError(f"expected FIELD=VALUE, such as steps=500, got {bad[0]!r}")
    name = config or DEFAULT_CONFIGS[kind]
    arguments = [str(Path(name).resolve()) if is_file_name(name) else name, *(f"--{text}" for text in overrides)]
    with _training_lock(store, kind):
        return _retrain(store, kind, arguments, automatic, given=bool(config or overrides))


@contextlib.contextmanager
def _training_lock(store: Store, kind: Kind) -> Iterator[None]:
    """Keeps other processes from training the same kind; the lock of a process that dies is released."""
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
        load_name(store, start)  # a model that is no longer to be had, or a mistake in the config, is found before
        _read_config(kind, arguments)  # data are frozen
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
    """Abandons the run that was stopped, and returns its version; None if there is no such run.

    Raises:
        UserError: the run is in progress in another process.
    """
    with _training_lock(store, kind):
        model = next((m for m in list_models(store, kind) if m.state == "training"), None)
        if model is None:
            return None
        remove(model_folder(store, model.number) / "run")
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
    if replacement_of(store, parent) is not None:
        raise UserError(
            f"{describe(model)} is in training from {parent.source!r}, which is no longer in the package; start anew: "
            f"sam-jax engine train {store.folder} --drop"
        )
    config, out = _read_config(model.kind, model.config), model_folder(store, model.number) / "run"
    data = dataclasses.replace(
        config.data, path=version_folder(store, "train", model.dataset).resolve(), format="sa1b", images=None
    )
    config = dataclasses.replace(config, out=out, data=data, init_from=load_name(store, parent))
    if model.kind == "sam":
        config = dataclasses.replace(config, model_from_init=True)
    elif model.config[0] == DEFAULT_CONFIGS["detector"]:
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
