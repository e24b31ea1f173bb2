"""Runs several evaluations of one model and combines them into one report; finished evaluations are not repeated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from sam_jax.bounds import CheckedFields, CountOrNone
from sam_jax.checkpoints.hub import load_model
from sam_jax.config import ParallelConfig
from sam_jax.errors import EXPECTED_ERRORS, MissingFile, UserError
from sam_jax.evals.report import EvalReport, Evaluation
from sam_jax.files import read_json, read_text, write_atomically
from sam_jax.model import model_identity
from sam_jax.parallel.gather import all_gather
from sam_jax.parallel.start import start_processes
from sam_jax.progress import ProgressBar

DONE = "done.json"  # beside a task's report: the identity of the config and model it was made with


@dataclasses.dataclass(frozen=True)
class SuiteConfig(CheckedFields):
    """Options of a suite of evaluations."""

    tasks: Annotated[
        tuple[Evaluation, ...], tyro.conf.Suppress
    ]  # evaluation configs with paths relative to `out` and `data`
    data: Path  # folder with the data of all tasks
    out: Path = Path("runs/eval_zero_shot")  # folder for the report, with a subfolder per task
    model: str = "small"  # name of a released model, path of a checkpoint, or OWNER/NAME on the Hugging Face Hub
    sources: Annotated[dict[str, str], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """Where to get the data of a task, by task name, for tasks whose messages do not say so."""
    only: tuple[str, ...] = ()  # names of the tasks to run (the last part of their `out`); none means all
    max_images: CountOrNone | None = None  # images of each data set at most; 0: all; None: as each task says
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Runs the tasks in turn. A task that fails, or whose data is missing, does not stop the others.

        Returns:
            A report with the tables of all tasks. Its results have, by task name, the `status` (measured, missing or
            failed), and the task's `results` or the `reason`.

        Raises:
            UserError: a task is unknown, two tasks have the same name, or the model cannot be loaded.
            MissingFile: there is no data of any task; the message has a line for each.
        """
        start_processes(self.parallel)
        tasks = {task.out.name: self._with_suite_paths(task) for task in self.tasks}
        if len(tasks) < len(self.tasks):
            raise UserError(f"expected tasks with different out, got {[str(task.out) for task in self.tasks]}")
        unknown = sorted(set(self.only) - set(tasks))
        if unknown:
            raise UserError(f"unknown tasks {unknown}; known are {', '.join(tasks)}")
        model = model_identity(load_model(self.model))
        outcomes = {
            name: run_task(task, f"{model} {task!r}", self.sources.get(name, ""))
            for name, task in ProgressBar(tasks.items(), unit="task", desc="zero-shot")
            if not self.only or name in self.only
        }
        if outcomes and all(outcome["status"] == "missing" for outcome in outcomes.values()):
            lines = [f"  {name}: {_in_a_line(outcome['reason'])}" for name, outcome in outcomes.items()]
            raise MissingFile("\n".join([f"nothing to evaluate on in {self.data}:", *lines]))
        failed = any(outcome["status"] == "failed" for outcome in outcomes.values())
        title = f"Zero-shot evaluations of {self.model}"
        return EvalReport(title, format_suite(title, outcomes), {"model": self.model, "tasks": outcomes}, failed)

    def _with_suite_paths(self, task: Any) -> Evaluation:
        """Returns a task with the suite's model, its results below `out` and its other paths below `data`."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(task):
            value = getattr(task, field.name)
            if field.name == "out":
                changes["out"] = self.out / value
            elif field.name == "model":
                changes["model"] = self.model
            elif field.name == "max_images" and self.max_images is not None:
                changes["max_images"] = self.max_images
            elif isinstance(value, Path):
                changes[field.name] = self.data / value
        return dataclasses.replace(task, **changes)


def _in_a_line(reason: str) -> str:
    """Returns a reason of several lines by its first two."""
    first, *rest = reason.splitlines()
    more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
    return " ".join([first, *(line.strip() for line in rest[:1])]) + more


def run_task(task: Evaluation, identity: str, source: str = "") -> dict[str, Any]:
    """Runs a task, or reads its report if it was made with the same config and model.

    A report that lacks datasets (`missing` in its results) is made again, since the data may be there by now; the task
    reuses its own finished results.

    Args:
        identity: everything the report depends on.
        source: where to get the task's data.

    Returns:
        The outcome of the task, the same in every process.
    """
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        outcome = _read_done(task.out, digest)
    outcome = all_gather(outcome)[0]
    if outcome:
        return outcome
    outcome = all_gather(_attempt(task, source))[0]
    if jax.process_index() == 0 and outcome["status"] == "measured":
        EvalReport(outcome["title"], outcome["table"], outcome["results"]).write(task.out)
        if not outcome["results"].get("missing"):
            write_atomically(task.out / DONE, json.dumps({"identity": digest, "title": outcome["title"]}))
    return outcome


def _attempt(task: Evaluation, source: str) -> dict[str, Any]:
    try:
        report = task.evaluate()
    except FileNotFoundError as error:
        return {"status": "missing", "reason": str(error) + (f". Get the data from {source}" if source else "")}
    except EXPECTED_ERRORS as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return _measured(report.title, report.table, report.results)


def _measured(title: str, table: str, results: dict[str, Any]) -> dict[str, Any]:
    return {"status": "measured", "title": title, "table": table, "results": results}


def _read_done(folder: Path, digest: str) -> dict[str, Any]:
    done, results, table = (folder / name for name in (DONE, "report.json", "report.md"))
    if not all(path.is_file() for path in (done, results, table)):
        return {}
    content = read_json(done)
    if content["identity"] != digest:
        return {}
    return _measured(content["title"], read_text(table), read_json(results))


def format_suite(title: str, outcomes: dict[str, dict[str, Any]]) -> str:
    """Formats the tables of the measured tasks in Markdown, and the reasons why others were not measured."""
    parts = [f"# {title}\n"]
    for name, outcome in outcomes.items():
        if outcome["status"] == "measured":
            parts.append(f"## {name}\n\n{outcome['title']}.\n\n{outcome['table']}")
    rest = {name: outcome for name, outcome in outcomes.items() if outcome["status"] != "measured"}
    if rest:
        lines = [f"- {name}: {outcome['status']}. {outcome['reason']}" for name, outcome in rest.items()]
        parts.append("## Not measured\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)
