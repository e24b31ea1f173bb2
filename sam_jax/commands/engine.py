"""`sam-jax engine`: the stages of the data engine as commands."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sam_jax.commands.output_format import OutputFormatName
from sam_jax.engine.automatic import Run, run
from sam_jax.engine.records import Stage

Project = tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class Init:
    """Makes a project of a folder of images, or adds the folder's new images to a project.

    Example: sam-jax engine init project --images photos --held-out 0.1
    """

    project: Project
    """Folder of the project: its store, datasets and models."""
    images: Path
    """Folder of the images, with all below it. They stay where they are."""
    model: str = "tiny"
    """Name or path of the model to begin with."""
    held_out: float = 0.1
    """Share of the images that models are judged on and never trained on; people annotate them like the rest."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Shows stage, images, masks, datasets and models of a project."""

    project: Project
    """Folder of the project."""
    json: bool = False
    """As JSON."""


@dataclasses.dataclass(frozen=True)
class Release:
    """Gives images that somebody opened and left to others. Their masks stay.

    Example: sam-jax engine release project --annotator bob --idle-hours 0
    """

    project: Project
    """Folder of the project."""
    annotator: str | None = None
    """Whose; without it everybody's."""
    idle_hours: float = 24.0
    """Only images that were opened, and whose masks were changed, at least so long ago."""


@dataclasses.dataclass(frozen=True)
class Move:
    """Goes on to the next stage, or back to the one before."""

    project: Project
    """Folder of the project."""
    stage: tyro.conf.Positional[Stage]
    """assisted-manual: people draw all masks; semi-automatic: they complete pre-filled ones; automatic: nobody does."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Freezes a dataset version and trains the next model on it; one that was stopped goes on.

    Example: sam-jax engine train project --config configs/finetune_lora.py --set steps=500 optimizer.learning-rate=1e-4
    """

    project: Project
    """Folder of the project."""
    config: Path | None = None
    """Config of train.py; out, data.path and init_from are the project's. Without it the decoder is fine-tuned."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE ...")] = ()
    """Fields of the config, named as for train.py."""
    automatic: tuple[Path, ...] = ()
    """Outputs of sam-jax engine run (or anything in SA-1B's layout) to train on as well."""
    detector: bool = False
    """Train a class-agnostic detector, for sam-jax engine prefill, in place of a model."""
    drop: bool = False
    """Give up the training that was stopped, and start anew."""


@dataclasses.dataclass(frozen=True)
class Promote:
    """Measures a candidate on the held-out images, and uses it from now on if it is not worse than the current model.

    There is no --force: a model that is worse on images it has not seen would draw worse masks, on which the next
    model would be trained. More data, or another config, is the way.
    """

    project: Project
    """Folder of the project."""
    model: int | None = None
    """Number of the candidate; without it the newest."""


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Puts the model's confident masks into images that nobody has opened, for people to accept, edit or reject.

    Boxes come from a class-agnostic detector that was trained on people's masks (sam-jax engine train --detector).
    """

    project: Project
    """Folder of the project."""
    source: Annotated[Literal["detector", "everything"], tyro.conf.arg(name="from")] = "detector"
    """everything: the masks of everything mode, where there is no detector."""
    detector: Path | None = None
    """Checkpoint of another detector than the project's newest."""
    min_score: float = 0.5
    """Boxes of the detector below it are left out."""
    min_predicted_iou: float | None = None
    """Masks below it are left out; with everything mode 0.88 where nothing is said."""
    max_images: int = 0
    """Most images to fill; 0 means all."""
    batch: int = 4
    """Images that are computed together, with a detector."""


@dataclasses.dataclass(frozen=True)
class Remaining:
    """Lists the images that nobody has finished, without the held-out ones: what the automatic stage takes.

    Example: sam-jax engine remaining project --out rest.txt; sam-jax engine run rest.txt --out automatic
    """

    project: Project
    """Folder of the project."""
    out: Path
    """Text file, a path per line."""


@dataclasses.dataclass(frozen=True)
class ExportMasks:
    """Writes all saved masks of a project in one of the formats of sam-jax everything.

    Example: sam-jax engine export project --format yolo --out labels
    """

    project: Project
    """Folder of the project."""
    out: Path
    """Folder for the masks; a new one."""
    format: OutputFormatName = "coco"
    automatic: tuple[Path, ...] = ()
    """Outputs of sam-jax engine run (or anything in SA-1B's layout) whose masks are written as well."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes PROJECT/report/report.md: status, and plots of masks per image, sizes, concavity, centres and time."""

    project: Project
    """Folder of the project."""


Command = (
    Annotated[Init, tyro.conf.subcommand("init")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Release, tyro.conf.subcommand("release")]
    | Annotated[Move, tyro.conf.subcommand("stage")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Promote, tyro.conf.subcommand("promote")]
    | Annotated[Prefill, tyro.conf.subcommand("prefill")]
    | Annotated[ExportMasks, tyro.conf.subcommand("export")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Remaining, tyro.conf.subcommand("remaining")]
    | Annotated[Run, tyro.conf.subcommand("run")]
)


@dataclasses.dataclass(frozen=True)
class Engine:
    """The data engine: people annotate with a model's help, models are retrained, and annotate alone."""

    command: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Command]]


def engine(options: Engine) -> int:
    """Runs one command; gives the exit code: 1 where a model was not promoted or images can't be read."""
    match options.command:
        case Init() as command:
            return _init(command)
        case Status() as command:
            return _status(command)
        case Release() as command:
            return _release(command)
        case Move() as command:
            return _move(command)
        case Train() as command:
            return _train(command)
        case Promote() as command:
            return _promote(command)
        case Prefill() as command:
            return _prefill(command)
        case ExportMasks() as command:
            return _export(command)
        case Report() as command:
            return _report(command)
        case Remaining() as command:
            return _remaining(command)
        case Run() as command:
            return run(command)


def _init(options: Init) -> int:
    from sam_jax.engine.stages import init

    store, new = init(options.project, options.images, options.model, options.held_out)
    held_out = sum(image.split == "held_out" for image in store.images())
    print(f"{new} new images, {len(store.images())} in all, {held_out} of them held out, in {options.project}")
    return 0


def _status(options: Status) -> int:
    from sam_jax.engine.stages import describe_status, summarize
    from sam_jax.engine.store import Store

    summary = summarize(Store(options.project, create=False))
    print(json.dumps(summary, indent=1) if options.json else describe_status(summary))
    return 0


def _release(options: Release) -> int:
    from sam_jax.engine.store import Store

    released = Store(options.project, create=False).release(options.idle_hours, options.annotator)
    print("\n".join([f"{len(released)} images are free again", *(image.name for image in released)]))
    return 0


def _move(options: Move) -> int:
    from sam_jax.engine.stages import move
    from sam_jax.engine.store import Store

    move(Store(options.project, create=False), options.stage)
    print(f"stage: {options.stage}")
    return 0


def _train(options: Train) -> int:
    from sam_jax.engine.models import Kind, describe
    from sam_jax.engine.retraining import drop_training, retrain
    from sam_jax.engine.store import Store

    store = Store(options.project, create=False)
    kind: Kind = "detector" if options.detector else "sam"
    if options.drop and (dropped := drop_training(store, kind)):
        print(f"{describe(dropped)} is given up")
    model = retrain(store, kind, options.config, options.set, options.automatic)
    print(f"{describe(model)}: {model.state}, on dataset {model.dataset}")
    return 130 if model.state == "training" else 0


def _promote(options: Promote) -> int:
    from sam_jax.engine.promotion import promote
    from sam_jax.engine.store import Store

    decision = promote(Store(options.project, create=False), options.model)
    number = decision.candidate.number
    if decision.promoted:
        print(f"model {number} is promoted: {decision.reason}")
        return 0
    print(
        f"model {number} is not promoted: {decision.reason}. There is no --force: it would draw worse masks, on which "
        "the next model would be trained; annotate more, or train with another config"
    )
    return 1


def _prefill(options: Prefill) -> int:
    from sam_jax.engine.prefill import open_proposer, prefill
    from sam_jax.engine.store import Store

    store, everything = Store(options.project, create=False), options.source == "everything"
    settings: dict[str, Any] = {} if everything else {"min_score": options.min_score, "batch_size": options.batch}
    if options.min_predicted_iou is not None:
        settings["min_predicted_iou"] = options.min_predicted_iou
    proposer = open_proposer(store, options.detector, everything=everything, **settings)
    report = prefill(store, proposer, options.max_images)
    print(f"{report.masks} masks on {report.images} images, by {proposer.name}")
    for name, reason in report.failures.items():
        print(f"sam-jax: not read: {name}: {reason}", file=sys.stderr)
    return 1 if report.failures else 0


def _export(options: ExportMasks) -> int:
    from sam_jax.engine.export import export_project
    from sam_jax.engine.store import Store

    store = Store(options.project, create=False)
    report = export_project(store, options.out, options.format, options.automatic)
    print(f"{report.masks} masks of {report.images} images, in {options.out}")
    return 0


def _report(options: Report) -> int:
    from sam_jax.engine.report import write_report
    from sam_jax.engine.store import Store

    print(write_report(Store(options.project, create=False)))
    return 0


def _remaining(options: Remaining) -> int:
    from sam_jax.engine.stages import unfinished
    from sam_jax.engine.store import Store
    from sam_jax.files import write_atomically

    paths = unfinished(Store(options.project, create=False))
    write_atomically(options.out, "".join(f"{path}\n" for path in paths))
    print(f"{len(paths)} images, in {options.out}")
    return 0
