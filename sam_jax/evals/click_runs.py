"""What all click evaluations share: sampling the datasets, dividing images over processes, resuming, exact sums."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam_jax.data.examples import Example, Source
from sam_jax.errors import EXPECTED_ERRORS, BadRecord, MissingFile, UserError
from sam_jax.evals.click_simulation import ClickRules, simulate_images
from sam_jax.evals.records import MaskRecord, RecordLog, image_key, sum_counts
from sam_jax.evals.report import LEFT_OUT, list_section
from sam_jax.evals.segmenters import Segmenter
from sam_jax.parallel.gather import all_gather, shard_by_process
from sam_jax.progress import ProgressBar

Problems = dict[str, list[str]]
"""For each dataset, messages about the images and masks that could not be used."""


@dataclasses.dataclass(frozen=True)
class DatasetSample:
    """The images and masks of a dataset that are evaluated."""

    examples: dict[str, Example]  # by image name, which is unique in the dataset
    problems: list[str] = dataclasses.field(default_factory=list)


def sample_examples(
    source: Source, max_images: int = 0, max_masks: int = 0, seed: int = 0, *, enough: int = 0, folder: Path = Path()
) -> DatasetSample:
    """Draws a random sample of the images, and of the masks of each image. The same arguments give the same sample.

    Args:
        max_images: number of images; 0 means all.
        max_masks: number of masks per image; 0 means all.
        enough: stop drawing images once they have this many masks; 0 means no limit.
        folder: images are named by their paths relative to it.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(source))[: max_images or None]
    drawn: dict[int, Example] = {}
    problems = []
    masks = 0
    for row in ProgressBar(rows, desc="read masks", unit="image", leave=False, delay=2):
        if enough and masks >= enough:
            break
        try:
            drawn[row] = source[int(row)]
        except BadRecord as error:
            problems.append(str(error))
            continue
        count = len(drawn[row].masks)
        masks += min(count, max_masks) if max_masks else count
    examples: dict[str, Example] = {}
    for row in sorted(drawn):
        example = drawn[row]
        chosen = sorted(rng.permutation(len(example.masks))[: max_masks or None])
        name = image_name(example, folder)
        if name in examples:
            problems.append(f"{name} occurs more than once; the first one counts")
        else:
            examples[name] = dataclasses.replace(example, masks=tuple(example.masks[i] for i in chosen))
    return DatasetSample(examples, problems)


def image_name(example: Example, folder: Path) -> str:
    """Returns the path of an image relative to a folder, without its suffix."""
    path = Path(example.member or example.path)
    inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
    return inside.with_suffix("").as_posix()


def open_datasets(
    names: Sequence[str], open_one: Callable[[str], DatasetSample]
) -> tuple[dict[str, DatasetSample], dict[str, str]]:
    """Opens datasets; one that cannot be opened is reported and left out.

    Returns:
        The samples by dataset name, and the reason for each dataset that is left out.

    Raises:
        MissingFile: none can be opened; the message says what each of them lacks.
    """
    samples, missing = {}, {}
    for name in names:
        try:
            samples[name] = open_one(name)
        except EXPECTED_ERRORS as error:
            missing[name] = str(error)
    if not samples:
        raise MissingFile(
            "no dataset can be evaluated:\n" + "\n".join(f"  {name}: {why}" for name, why in missing.items())
        )
    if missing:  # early: it may be a mistake, and the report comes at the end
        verb = "is" if len(missing) == 1 else "are"
        ProgressBar.write(f"{', '.join(missing)} {verb} left out; the report will say why")
    return samples, missing


def run_clicks(
    segmenter: Segmenter,
    samples: Mapping[str, DatasetSample],
    rules: ClickRules,
    out: Path,
    protocol: dict[str, Any],
    count: Callable[[MaskRecord], Counter[str]],
    *,
    workers: int = 2,
) -> tuple[dict[str, list[Counter[str]]], Problems]:
    """Runs a click evaluation of one method on samples of datasets.

    Finished images are not computed again. Several processes divide the images among them.

    Args:
        out: folder of the records, which go to NAME.jsonl with the segmenter's name.
        protocol: what the records depend on besides the segmenter and the rules.
        count: turns the record of a mask into integer counts, which are summed per image.

    Returns:
        For each dataset the counts of every image that has a mask, and the problems. They are the same in every process
        and for any number of processes.

    Raises:
        UserError: no image of any dataset can be used.
    """
    process = jax.process_index()
    protocol = {"segmenter": segmenter.identity, "rules": dataclasses.asdict(rules)} | protocol
    log = RecordLog(out, segmenter.name.replace(" ", "_"), protocol, process)
    wanted = {(name, image): e for name, s in samples.items() for image, e in s.examples.items()}
    known = {image_key(line): line for part in all_gather(list(log.lines.values())) for line in part}
    todo = shard_by_process(key for key in wanted if key not in known)
    mine, failed = [], []
    results = simulate_images(segmenter, [wanted[key] for key in todo], rules, workers)
    for (name, image), result in zip(
        todo, ProgressBar(results, total=len(todo), desc=segmenter.name, unit="image"), strict=True
    ):
        if not result.complete:
            failed.append([name, f"{image}: {result.problems[0]}"])
            continue
        line = {"dataset": name, "picture": image, "masks": result.records, "problems": result.problems}
        log.write(line)
        mine.append(line)
    known |= {image_key(line): line for part in all_gather(mine) for line in part}
    if process == 0:
        log.finish(known.values())
    lines = {key: known[key] for key in wanted if key in known}
    problems: Problems = {name: list(sample.problems) for name, sample in samples.items()}
    for (name, image), line in lines.items():
        problems[name] += [f"{image}: {problem}" for problem in line["problems"]]
    for name, problem in (row for part in all_gather(failed) for row in part):
        problems[name].append(problem)
    if not any(line["masks"] for line in lines.values()):
        first = next((p for rows in problems.values() for p in rows), "there is no mask")
        raise UserError(f"{segmenter.name}: no image could be evaluated; the first: {first}")
    return {
        name: [sum_counts(map(count, line["masks"])) for key, line in lines.items() if key[0] == name and line["masks"]]
        for name in samples
    }, {name: rows for name, rows in problems.items() if rows}


def describe_left_out(missing: Mapping[str, str], problems: Mapping[str, Problems]) -> str:
    """Formats, for a report, the datasets, images and masks that no figure includes.

    Args:
        missing: why each missing dataset could not be opened.
        problems: the problems of each method.
    """
    not_there = [f"{name}: {why}" for name, why in missing.items()]
    left_out = [
        f"{method}, {name}: {problem}"
        for method, by_name in problems.items()
        for name, messages in by_name.items()
        for problem in messages
    ]
    return list_section("Not there, and in no figure", not_there) + list_section(LEFT_OUT, left_out)
