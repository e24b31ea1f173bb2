"""Single-point valid mask: how good a mask one click gives, and how fast further clicks improve it.

Reference: paper, sections 7.1 and D.1. Decisions where it is silent: the previous logits are fed back; IoU is measured
at the original size; masks are averaged per dataset.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sam_jax.data.coco import read_coco
from sam_jax.data.examples import Example, read_bsds500, read_grabcut
from sam_jax.evals.baselines import BASELINES
from sam_jax.evals.clicks import first_click, next_click
from sam_jax.evals.metrics import mask_iou
from sam_jax.evals.report import Report
from sam_jax.evals.ritm import PREFIX, RitmSegmenter
from sam_jax.evals.segmenters import Clicks, SamSegmenter, Segmenter
from sam_jax.hub import load_model
from sam_jax.model import Sam
from sam_jax.ops.rle import decode_rle

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SinglePointConfig:
    """What `eval.py` measures."""

    out: Path = Path("runs/eval_tiny")  # folder of the records and the report
    data: Path = Path("../shared/data")  # folder with bsds500, coco_small, grabcut20, dsb2018
    model: str = "tiny"  # name or path of a checkpoint
    datasets: tuple[str, ...] = ("bsds500", "coco_small", "grabcut20", "dsb2018")
    methods: tuple[str, ...] = ("sam", "region growing", "GrabCut", "disc")  # and ritm:PATH
    max_pictures: int = 100  # per dataset, the same for every method; 0 means all
    max_masks: int = 3  # per picture, likewise
    clicks: int = 5  # the last number of clicks
    seed: int = 0  # of the sample
    workers: int = 2  # pictures at a time: the device computes for one while the host clicks on another

    def evaluate(self) -> Report:
        """Evaluates every method; see `run` for what it keeps and what it raises."""
        results = run(self, self._segmenter)
        return Report("mIoU in percent after 1, 3 and 5 clicks", report(results), results)

    def _segmenter(self, method: str) -> Segmenter:
        if method == SamSegmenter.name:
            return SamSegmenter(load_model(self.model))
        if method.startswith(PREFIX):
            return RitmSegmenter.from_method(method)
        if method not in BASELINES:
            raise ValueError(f"unknown method {method!r}; known are {[SamSegmenter.name, *BASELINES, PREFIX + 'PATH']}")
        return BASELINES[method]()


DATASETS: dict[str, Callable[[Path], list[Example]]] = {
    "bsds500": lambda root: read_bsds500(root / "bsds500", "test", min_area=100),
    "coco_small": lambda root: read_coco(
        root / "coco_small" / "instances.json",
        root / "coco_small" / "images",
        "coco_small",
        keep_image=lambda image: image["coco_split"] == "val2017",
        min_area=100,
    ),
    "grabcut20": lambda root: read_grabcut(root / "grabcut20", root / "bsds500"),
    "dsb2018": lambda root: read_coco(root / "dsb2018" / "annotations.json", root / "dsb2018" / "images", "dsb2018"),
}


def sample_examples(examples: Sequence[Example], max_pictures: int, max_masks: int, seed: int) -> list[Example]:
    """A random part of the pictures, and of each picture's masks; 0 means all. A function of the arguments alone."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(examples))[: max_pictures or None]
    sample = []
    for row in sorted(rows):
        example = examples[row]
        masks = sorted(rng.permutation(len(example.masks))[: max_masks or None])
        sample.append(dataclasses.replace(example, masks=tuple(example.masks[i] for i in masks)))
    return sample


def evaluate_picture(segmenter: Segmenter, example: Example, clicks: int) -> list[Record]:
    """Plays `clicks` clicks on every mask of a picture.

    Returns:
        a record per mask: `iou` after each click of the mask that the method trusts most, `best` the best IoU of all
        masks that it offered at the first click, `area` in pixels.
    """
    truths = [decode_rle(mask) for mask in example.masks]
    ignore = None if example.ignore is None else decode_rle(example.ignore)
    session = segmenter.open(example.image())
    starts = [first_click(truth, ignore) for truth in truths]
    given = [Clicks([point], [label]) for point, label in starts]
    finished: set[int] = set()  # masks without an error left: their user clicks no more and keeps what there is
    records: list[Record] = [
        {"dataset": example.dataset, "picture": example.path.stem, "mask": i, "area": int(truth.sum()), "iou": []}
        for i, truth in enumerate(truths)
    ]
    for turn in range(clicks):
        answers = session.segment(given)
        for i, (record, answer, truth, click) in enumerate(zip(records, answers, truths, given, strict=True)):
            if i in finished:
                record["iou"].append(record["iou"][-1])
                continue
            overlaps = [mask_iou(mask, truth, ignore) for mask in answer.masks]
            record["iou"].append(round(overlaps[0], 5))
            if turn == 0:
                record["best"] = round(max(overlaps), 5)
            following = next_click(truth, answer.masks[0], click.points, ignore)
            if following is None:
                finished.add(i)
            elif turn < clicks - 1:
                click.points.append(following[0])
                click.labels.append(following[1])
    return records


def summarize(records: Iterable[Record]) -> dict[str, float]:
    """Means over masks: `best@1`, and the IoU after 1, 2, 3, 5, ... clicks, in percent."""
    records = list(records)
    if not records:
        return {"masks": 0}
    iou = np.array([record["iou"] for record in records])
    after = [n for n in (1, 2, 3, 5, 9) if n <= iou.shape[1]]
    return (
        {"masks": len(records), "best@1": 100 * float(np.mean([record["best"] for record in records]))}
        | {f"iou@{n}": 100 * float(iou[:, n - 1].mean()) for n in after}
    )  # fmt: skip


def run(config: SinglePointConfig, make_segmenter: Callable[[str], Segmenter]) -> dict[str, dict[str, dict]]:
    """Evaluates every method on every dataset that is there; finished pictures are not done again.

    Args:
        make_segmenter: method's name -> segmenter.

    Returns:
        method -> dataset -> summary. Records go to `out/NAME.jsonl`, by the segmenter's name, one line per picture.

    Raises:
        ValueError: an unknown dataset.
        FileNotFoundError: no dataset is there. One that is missing among others is named and left out.
    """
    unknown = sorted(set(config.datasets) - set(DATASETS))
    if unknown:
        raise ValueError(f"unknown datasets {unknown}; known are {sorted(DATASETS)}")
    examples: dict[str, list[Example]] = {}
    for name in config.datasets:
        try:
            whole = DATASETS[name](config.data)
        except OSError as error:
            tqdm.write(f"{name} is left out: {error}. Put it into {config.data}, or say where it is with --data")
            continue
        examples[name] = sample_examples(whole, config.max_pictures, config.max_masks, config.seed)
    if not examples:
        raise FileNotFoundError(f"none of the datasets {', '.join(config.datasets)} is in {config.data.resolve()}")
    config.out.mkdir(parents=True, exist_ok=True)
    wanted = {(e.dataset, e.path.stem): name for name, rows in examples.items() for e in rows}
    results: dict[str, dict[str, dict]] = {}
    for method in config.methods:
        segmenter = make_segmenter(method)
        protocol = {"segmenter": segmenter.identity, "clicks": config.clicks, "seed": config.seed}
        protocol |= {"pictures": config.max_pictures, "masks": config.max_masks}
        log = RecordLog(config.out / f"{segmenter.name.replace(' ', '_')}.jsonl", protocol)
        todo = [e for rows in examples.values() for e in rows if (e.dataset, e.path.stem) not in log.done]
        done = evaluate_pictures(segmenter, todo, config.clicks, config.workers)
        for records in tqdm(done, total=len(todo), desc=method, unit="picture"):
            log.write(records)
        results[method] = {
            name: summarize(r for key, rows in log.done.items() if wanted.get(key) == name for r in rows)
            for name in examples
        }
    return results


def evaluate_pictures(
    segmenter: Segmenter, examples: Sequence[Example], clicks: int, workers: int = 2
) -> Iterator[list[Record]]:
    """`evaluate_picture` of each, in order, several at a time. Threads do: OpenCV and JAX compute outside the GIL."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield from pool.map(lambda example: evaluate_picture(segmenter, example, clicks), examples)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends after the pictures in work, not after all


def evaluate(
    model: Sam, examples: Sequence[Example], *, max_pictures: int = 50, max_masks: int = 4, clicks: int = 5
) -> dict[str, float]:
    """`summarize` of a model on a sample of examples that is the same every time: validation during training."""
    sample = sample_examples(examples, max_pictures, max_masks, seed=0)
    return summarize(r for records in evaluate_pictures(SamSegmenter(model), sample, clicks) for r in records)


class RecordLog:
    """Results per picture, on disk after each. A file of another protocol is put aside; a torn last line is dropped."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        self._path = path
        self.done: dict[tuple[str, str], list[Record]] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and _parse(lines[0]) != protocol:
            path.replace(path.with_suffix(".old.jsonl"))
            lines = []
        whole = [line for line in map(_parse, lines[1:]) if line is not None]
        for records in whole:
            self.done[records[0]["dataset"], records[0]["picture"]] = records
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [protocol, *whole]))
        temporary.replace(path)

    def write(self, records: list[Record]) -> None:
        self.done[records[0]["dataset"], records[0]["picture"]] = records
        with self._path.open("a") as file:
            file.write(json.dumps(records) + "\n")


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def report(results: dict[str, dict[str, dict]]) -> str:
    """A Markdown table: rows are methods, columns datasets and clicks; mIoU in percent."""
    datasets = list(next(iter(results.values())))
    clicks = (1, 3, 5)
    head = [f"{name} ({results[next(iter(results))][name]['masks']} masks) @{n}" for name in datasets for n in clicks]
    lines = ["| method | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]

    def row(label: str, values: list[float | None]) -> str:
        cells = ["" if value is None else f"{value:.1f}" for value in values]
        return f"| {label} | " + " | ".join(cells) + " |"

    for method, by_dataset in results.items():
        if method == "sam":
            best = [by_dataset[name].get("best@1") if n == 1 else None for name in datasets for n in clicks]
            lines.append(row("sam, best of three", best))
            method = "sam, most confident"
        lines.append(row(method, [by_dataset[name].get(f"iou@{n}") for name in datasets for n in clicks]))
    return "\n".join(lines) + "\n"
