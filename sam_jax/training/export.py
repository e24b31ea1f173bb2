"""The model in a run's checkpoint, whatever devices wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding

from sam_jax.checkpoints import expected_shapes
from sam_jax.checkpoints.family import check_shapes, shapes_of
from sam_jax.config import EverythingOptions, FinetuneConfig, SamConfig
from sam_jax.errors import MissingFile, UserError
from sam_jax.files import read_json
from sam_jax.training.checkpoints import best_step, check_state, open_checkpoints
from sam_jax.training.run import RECORD
from sam_jax.training.trainable import join_params, without_clip
from sam_jax.types import Params


class RunModel(NamedTuple):
    """The model of a training run."""

    params: Params  # averaged where the run keeps an average, adapters merged
    config: SamConfig
    everything: EverythingOptions  # what suits it in everything mode


def load_run(run: Path, step: int | Literal["best"] | None = None) -> RunModel:
    """Returns a run's model.

    Args:
        run: `out` of the run.
        step: of the checkpoint; "best": the one that validated best; None: the last.

    Raises:
        MissingFile: no run there, or no checkpoint of that step.
        UserError: a `config.json` that is none of a run, or a checkpoint that is damaged.
    """
    record = run / RECORD
    if not record.is_file() or not (run / "checkpoints").is_dir():
        raise MissingFile(f"expected a training run (config.json, checkpoints) in {run}, found none")
    try:
        content = read_json(record)
        model = SamConfig.from_fields(content["model"])
        finetune = FinetuneConfig(**content["finetune"])
        everything = EverythingOptions.from_fields(content.get("everything", {}))  # earlier runs have none
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"expected the config of a training run in {record}: {error}") from error
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add("state", ocp.args.StandardRestore)
    handlers.add("data", ocp.args.JsonRestore)
    folder = run.resolve() / "checkpoints"
    with open_checkpoints(folder, handler_registry=handlers) as manager:
        if step == "best" and (step := best_step(manager)) is None:
            raise MissingFile(f"expected a checkpoint that was validated in {run}, there is none; leave out best")
        step = manager.latest_step() if step is None else step
        if step is None or step not in manager.all_steps():
            raise MissingFile(f"expected a checkpoint of step {step} in {run}, there are {manager.all_steps()}")
        try:
            params = _restore_params(manager, step, finetune)
            check_shapes(shapes_of(flatten_dict(params, sep="/")), expected_shapes(model), "its tree", model)
        except Exception as error:  # of Orbax and the libraries below it: files that are damaged or not there
            reason = (str(error) or type(error).__name__).partition("\n")[0][:300]
            raise UserError(
                f"the checkpoint of step {step} in {folder} cannot be read ({reason}); there are those of steps "
                f"{sorted(manager.all_steps())}, give another one"
            ) from error
    return RunModel(params, model, everything)


def _restore_params(manager: ocp.CheckpointManager, step: int, finetune: FinetuneConfig) -> Params:
    """Returns the params in a checkpoint, restored on one device; what they are is known to its own files alone."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), manager.item_metadata(step).state
    )
    items = {"state": ocp.args.StandardRestore(template), "data": ocp.args.JsonRestore()}
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    state: dict[str, Any] = restored.state
    check_state(state, restored.data)
    if missing := [name for name in ("params", "frozen", "ema") if name not in state]:
        raise UserError(f"its tree has no {', '.join(missing)}")
    trained = state["params"] if state["ema"] is None else state["ema"]
    return jax.device_get(without_clip(join_params(trained, state["frozen"], finetune)))
