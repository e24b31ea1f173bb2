"""`sam-jax rate sample`, `serve` and `report`: people rate masks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.bounds import Area, CheckedFields, Count, Port, Seed
from sam_jax.errors import MissingPackage, UserError


@dataclasses.dataclass(frozen=True)
class RateSample(CheckedFields):
    """Draws objects that every source has a mask of, and shuffles the masks.

    A source is a file in COCO's result format, such as `sam-jax eval instances` leaves; the file of
    annotations stands for the annotated masks. Masks go together by image, category and prompt.
    Example: sam-jax rate sample --annotations coco.json --source sam=sam.results.json --source annotated=coco.json
    """

    annotations: Path
    """COCO or LVIS file that names the images."""
    source: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=FILE")] = ()
    """Name and file of masks to compare; given twice or more."""
    images: Path | None = None
    """Folder of the images; by default the annotations' own or its subfolder images."""
    masks: Count = 100
    """Number of masks to draw from each source."""
    min_area: Area = 24 * 24
    """Area of the smallest objects that are drawn, pixels."""
    seed: Seed = 0
    """Seed of the draw and of the order."""
    out: Path = Path("rating")
    """Folder of the study."""

    def run(self) -> None:
        """Writes a new study."""
        from sam_jax.evals.ground_truth import read_ground_truth
        from sam_jax.evals.rating.study import sample_study, write_study

        sources = {}
        for text in self.source:
            name, equals, file = text.partition("=")
            if not (name and equals and file) or name in sources:
                raise UserError(f"--source expects NAME=FILE, with different names, got {text!r}")
            sources[name] = Path(file)
        ground_truth = read_ground_truth(self.annotations, self.images)
        study = sample_study(ground_truth, sources, self.masks, self.seed, self.min_area)
        write_study(self.out, study)
        print(
            f"{len(study['jobs'])} masks of {len(sources)} sources in {self.out}; next: sam-jax rate serve {self.out}"
        )


@dataclasses.dataclass(frozen=True)
class RateServe(CheckedFields):
    """Opens the rating page. Every rating is on disk at once; the same command goes on.

    Several people may rate at once; each mask is rated by one of them.
    """

    study: tyro.conf.Positional[Path] = Path("rating")
    """Folder of the study."""
    host: str = "127.0.0.1"
    """Address to listen on. Other machines can reach any but 127.0.0.1 and localhost: a token is asked for then."""
    port: Port = 8008
    """Port to listen on; 0 takes one that is free."""
    token: str | None = None
    """Token that a visitor must have, 16 to 256 letters and digits; also from SAM_JAX_TOKEN. Where one is needed and
    none is given, it is drawn at random."""

    def run(self) -> None:
        """Serves the page until it is interrupted."""
        from filelock import FileLock, Timeout

        from sam_jax.evals.rating.study import Study

        try:
            from sam_jax.evals.rating.server import create_app
            from sam_jax.web.serving import access_of, serve_app
        except ImportError as error:
            raise MissingPackage(f"the page needs a web server: pip install 'sam_jax[app]' ({error})") from error
        access = access_of(self.host, self.token)
        study = Study(self.study)
        study.check_images()
        try:
            with FileLock(self.study / ".serving.lock", timeout=0):
                greeting = f"{len(study.ratings)} of {len(study.jobs)} masks rated."
                serve_app(create_app(study, access), access, self.port, greeting)
        except Timeout as error:
            raise UserError(f"{self.study} is being rated by another sam-jax rate serve") from error


@dataclasses.dataclass(frozen=True)
class RateReport:
    """Reports mean ratings with confidence intervals, and paired tests between the sources, in the study's folder."""

    study: tyro.conf.Positional[Path] = Path("rating")
    """Folder of the study."""

    def run(self) -> None:
        """Writes and prints the report."""
        from sam_jax.evals.rating.report import report_ratings
        from sam_jax.evals.rating.study import Study

        report = report_ratings(Study(self.study))
        print(f"{report.title}\n\n{report.table}\n{report.write(self.study)}")


@dataclasses.dataclass(frozen=True)
class Rate:
    """Lets people rate masks of several models without knowing whose they are (the paper's human study)."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[RateSample, tyro.conf.subcommand("sample", prefix_name=False)]
        | Annotated[RateServe, tyro.conf.subcommand("serve", prefix_name=False)]
        | Annotated[RateReport, tyro.conf.subcommand("report", prefix_name=False)]
    ]

    def run(self) -> None:
        """Runs the subcommand."""
        self.command.run()
