"""`sam-jax engine`: the stages of the data engine as commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sam_jax.bounds import Batch, CheckedFields, Count, CountOrNone, Factor, Fraction, GridSide, Rate, Within
from sam_jax.commands.engine_run import EngineRun
from sam_jax.commands.output_format import OutputFormatName
from sam_jax.commands.results import print_failures
from sam_jax.engine.records import Stage
from sam_jax.errors import UserError

Project = tyro.conf.Positional[Path]


@dataclasses.dataclass(frozen=True)
class EngineInit(CheckedFields):
    """Makes a project of a folder of images, or adds the folder's new images to a project.

    Example: sam-jax engine init project --images photos --held-out 0.1
    """

    project: Project
    """Folder of the project: its store, datasets and models."""
    images: Path
    """Folder of the images, with all below it. They stay where they are."""
    model: str | None = None
    """Name or path of the model to begin with; small by default. Also the one to go on with, where the package no
    longer has the project's model."""
    held_out: Rate = 0.1
    """Fraction of the images that models are evaluated on and never trained on; people annotate them like the rest."""

    def run(self) -> None:
        """Makes the project, or adds images to it."""
        from sam_jax.engine.stages import init_project

        store, new = init_project(self.project, self.images, self.model, self.held_out)
        held_out = sum(image.split == "held_out" for image in store.images())
        print(f"{new} new images, {len(store.images())} in all, {held_out} of them held out, in {self.project}")


@dataclasses.dataclass(frozen=True)
class EngineStatus:
    """Shows the stage, images, masks, datasets and models of a project."""

    project: Project
    """Folder of the project."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Prints the status."""
        from sam_jax.engine.stages import describe_status, summarize
        from sam_jax.engine.store import Store

        summary = summarize(Store(self.project, create=False))
        print(json.dumps(summary, indent=1) if self.json else describe_status(summary))


@dataclasses.dataclass(frozen=True)
class EngineRelease(CheckedFields):
    """Gives images that somebody opened and left to others. Their masks stay.

    Example: sam-jax engine release project --annotator bob --idle-hours 0
    """

    project: Project
    """Folder of the project."""
    annotator: str | None = None
    """Name of the annotator whose images are released; by default everybody's."""
    idle_hours: Factor = 24.0
    """Hours since an image was opened or its masks were changed, at the least."""

    def run(self) -> None:
        """Frees the images, and prints their names."""
        from sam_jax.engine.store import Store

        released = Store(self.project, create=False).release(self.idle_hours, self.annotator)
        print("\n".join([f"{len(released)} images are free again", *(image.name for image in released)]))


@dataclasses.dataclass(frozen=True)
class EngineStage:
    """Moves a project to the next stage, or back to the one before."""

    project: Project
    """Folder of the project."""
    stage: tyro.conf.Positional[Stage]
    """assisted-manual: people draw all masks; semi-automatic: they complete pre-filled ones; automatic: no people."""

    def run(self) -> None:
        """Moves the project to the stage."""
        from sam_jax.engine.stages import move_to_stage
        from sam_jax.engine.store import Store

        move_to_stage(Store(self.project, create=False), self.stage)
        print(f"stage: {self.stage}")


@dataclasses.dataclass(frozen=True)
class EngineTrain:
    """Freezes a dataset version and trains the next model on it; a training that was stopped goes on.

    Example: sam-jax engine train project --config finetune_lora --set steps=500 optimizer.learning-rate=1e-4
    """

    project: Project
    """Folder of the project."""
    config: str | None = None
    """Name of a shipped config (sam-jax train --help lists them) or path of a file; out, data.path and init_from
    are the project's. Without it engine_model, which fine-tunes the decoder, or engine_detector."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE ...")] = ()
    """Values for fields of the config, which are named as for sam-jax train."""
    automatic: tuple[Path, ...] = ()
    """Outputs of sam-jax engine run (or anything in SA-1B's layout) to train on as well."""
    detector: bool = False
    """Train a class-agnostic detector, for sam-jax engine prefill, in place of a model."""
    drop: bool = False
    """Give up a training that was stopped, and start anew."""

    def run(self) -> int:
        """Trains; returns 130 if the training was stopped before its end."""
        from sam_jax.engine.models import Kind, describe
        from sam_jax.engine.retraining import drop_training, retrain
        from sam_jax.engine.store import Store

        store = Store(self.project, create=False)
        kind: Kind = "detector" if self.detector else "sam"
        if self.drop and (dropped := drop_training(store, kind)):
            print(f"{describe(dropped)} is given up")
        model = retrain(store, kind, self.config, self.set, self.automatic)
        print(f"{describe(model)}: {model.state}, on dataset {model.dataset}")
        return 130 if model.state == "training" else 0


@dataclasses.dataclass(frozen=True)
class EnginePromote(CheckedFields):
    """Evaluates a candidate on the held-out images, and uses it from now on if it is not worse than the current model.

    At least 6 held-out images must be annotated; on fewer a difference may well be chance, and there is no verdict.
    There is no --force: a model that is worse on images it has not seen would draw worse masks, on which the next
    model would be trained. More data, or another config, is the way.
    """

    project: Project
    """Folder of the project."""
    model: Count | None = None
    """Number of the candidate; by default the newest."""

    def run(self) -> int:
        """Promotes the candidate, or says why not, or why there is no verdict, and returns 1."""
        from sam_jax.engine.promotion import promote
        from sam_jax.engine.store import Store

        decision = promote(Store(self.project, create=False), self.model)
        number = decision.candidate.number
        if decision.promoted:
            print(f"model {number} is promoted: {decision.reason}")
            return 0
        if decision.promoted is None:
            print(f"no verdict on model {number}: {decision.reason}")
            return 1
        print(
            f"model {number} is not promoted: {decision.reason}. There is no --force: it would draw worse masks, on "
            "which the next model would be trained; annotate more, or train with another config"
        )
        return 1


@dataclasses.dataclass(frozen=True)
class EnginePrefill(CheckedFields):
    """Puts the model's confident masks into images that nobody has opened, for people to accept, edit or reject.

    Boxes come from a class-agnostic detector that was trained on people's masks (sam-jax engine train --detector).
    """

    project: Project
    """Folder of the project."""
    source: Annotated[Literal["detector", "everything"], tyro.conf.arg(name="from")] = "detector"
    """Where masks come from: a detector's boxes, or everything mode, where there is no detector."""
    detector: Path | None = None
    """Checkpoint of another detector than the project's newest."""
    min_score: Fraction = 0.5
    """Least score of the detector's boxes that are used."""
    min_predicted_iou: Fraction | None = None
    """Least predicted IoU of the masks that are used. By default with everything mode the model's own, which its
    checkpoint holds, else 0.88; with a detector none."""
    min_stability: Fraction | None = None
    """Least stability of the masks of everything mode that are used; by default the model's own, else 0.95."""
    stability_offset: Annotated[float, Within(0, 100)] | None = None
    """Everything mode's stability is the IoU of the masks at the thresholds + and - this, in logits; by default the
    model's own, else 1."""
    points_per_side: GridSide | None = None
    """Points along a side of everything mode's grid; by default the model's own, else 32."""
    max_images: CountOrNone = 0
    """Most images to fill; 0 means all."""
    batch: Batch = 4
    """Images that are computed together, with a detector."""

    def run(self) -> int:
        """Fills images; returns 1 if some can't be read."""
        from sam_jax.engine.prefill import open_proposer, prefill
        from sam_jax.engine.store import Store

        store, everything = Store(self.project, create=False), self.source == "everything"
        settings: dict[str, Any] = {} if everything else {"min_score": self.min_score, "batch_size": self.batch}
        if self.min_predicted_iou is not None:
            settings["min_predicted_iou"] = self.min_predicted_iou
        for name in ("min_stability", "stability_offset", "points_per_side"):
            if (value := getattr(self, name)) is not None:
                if not everything:
                    raise UserError(f"--{name.replace('_', '-')} goes with --from everything, not with a detector")
                settings[name] = value
        if everything and self.detector is not None:
            raise UserError("expected --detector or --from everything, got both")
        proposer = open_proposer(store, self.detector, everything=everything, **settings)
        report = prefill(store, proposer, self.max_images)
        print(f"{report.masks} masks on {report.images} images, by {proposer.name}")
        if report.empty:
            options = "--min-predicted-iou and --min-stability" if everything else "--min-score and --min-predicted-iou"
            print(f"{report.empty} images are without masks: {proposer.describe_empty()}; {options} let more through")
        print_failures("not read", report.failures)
        return 1 if report.failures else 0


@dataclasses.dataclass(frozen=True)
class EngineRemaining:
    """Lists the images that nobody has finished, without the held-out ones: what the automatic stage takes.

    Example: sam-jax engine remaining project --out rest.txt; sam-jax engine run rest.txt --out automatic
    """

    project: Project
    """Folder of the project."""
    out: Path
    """Text file to write, a path per line."""

    def run(self) -> None:
        """Writes the list."""
        from sam_jax.engine.stages import unfinished_paths
        from sam_jax.engine.store import Store
        from sam_jax.files import write_atomically

        paths = unfinished_paths(Store(self.project, create=False))
        write_atomically(self.out, "".join(f"{path}\n" for path in paths))
        print(f"{len(paths)} images, in {self.out}")


@dataclasses.dataclass(frozen=True)
class EngineExport:
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

    def run(self) -> None:
        """Writes the masks."""
        from sam_jax.engine.export import export_project
        from sam_jax.engine.store import Store

        report = export_project(Store(self.project, create=False), self.out, self.format, self.automatic)
        print(f"{report.masks} masks of {report.images} images, in {self.out}")


@dataclasses.dataclass(frozen=True)
class EngineReport:
    """Writes PROJECT/report/report.md: the status, and plots of masks per image, sizes, concavity, centres and time."""

    project: Project
    """Folder of the project."""

    def run(self) -> None:
        """Writes the report."""
        from sam_jax.engine.report import write_report
        from sam_jax.engine.store import Store

        print(write_report(Store(self.project, create=False)))


@dataclasses.dataclass(frozen=True)
class Engine:
    """The data engine: people annotate with a model's help, models are retrained, and annotate alone."""

    command: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[
            Annotated[EngineInit, tyro.conf.subcommand("init")]
            | Annotated[EngineStatus, tyro.conf.subcommand("status")]
            | Annotated[EngineRelease, tyro.conf.subcommand("release")]
            | Annotated[EngineStage, tyro.conf.subcommand("stage")]
            | Annotated[EngineTrain, tyro.conf.subcommand("train")]
            | Annotated[EnginePromote, tyro.conf.subcommand("promote")]
            | Annotated[EnginePrefill, tyro.conf.subcommand("prefill")]
            | Annotated[EngineExport, tyro.conf.subcommand("export")]
            | Annotated[EngineReport, tyro.conf.subcommand("report")]
            | Annotated[EngineRemaining, tyro.conf.subcommand("remaining")]
            | Annotated[EngineRun, tyro.conf.subcommand("run")]
        ]
    ]

    def run(self) -> int | None:
        """Runs the subcommand."""
        return self.command.run()
