"""Text-to-mask evaluation: the mIoU of masks from a text prompt, and after one corrective click.

The paper only shows examples, so this protocol is our own. The text gives three masks, of which the one with the
highest predicted IoU is scored. Then the text, a click at the centre of that mask's largest error region, and its
logits give a single mask. Two controls show how much the text contributes: the same model with the texts exchanged
between masks, and with a click but no text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam_jax.bounds import Area, CheckedFields, CountOrNone, Seed
from sam_jax.checkpoints.hub import load_model, load_text_clip
from sam_jax.clip.model import Clip
from sam_jax.config import ParallelConfig
from sam_jax.data.phrases import PhrasedExample, read_phrases
from sam_jax.errors import UserError
from sam_jax.evals.clicks import first_click, next_click
from sam_jax.evals.metrics import mask_iou
from sam_jax.evals.records import ImageRecord, RecordLog, image_key
from sam_jax.evals.report import EvalReport
from sam_jax.model import Sam, model_identity
from sam_jax.ops.rle import decode_rle
from sam_jax.parallel.gather import all_gather, shard_by_process
from sam_jax.parallel.start import start_processes
from sam_jax.predictor import Masks, SamPredictor
from sam_jax.progress import ProgressBar
from sam_jax.prompting.prompts import Prompt

ROWS = {
    "text": "text",
    "text_best": "text, best of three",
    "text_and_click": "text + 1 corrective click",
    "click": "1 click, no text",
    "other_text": "another mask's text",
}


@dataclasses.dataclass(frozen=True)
class TextEvalConfig(CheckedFields):
    """Options of the text-to-mask evaluation."""

    data: Path  # COCO-format file, or folder with one, that has referring expressions, captions or category names
    model: str  # path of a model that was trained for text prompts
    out: Path = Path("runs/eval_text")  # folder for the records and the report
    images: Path | None = None  # folder of the images; None: near the annotations
    clip: str | None = None  # name or path of the CLIP text encoder; None: the one the model was trained with
    max_images: CountOrNone = 0  # random images; 0 means all
    max_texts: CountOrNone = 0  # random texts per image; 0 means all
    min_area: Area = 100  # smallest mask in pixels
    seed: Seed = 0  # seed of the sample and of the exchange of texts
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)  # processes that divide the images

    def evaluate(self) -> EvalReport:
        """Evaluates the model on text prompts; finished images are not computed again.

        Raises:
            UserError, OSError: the model has no text prompt or needs another CLIP, or the data has no texts.
        """
        start_processes(self.parallel)
        model = load_model(self.model)
        if not model.config.text_dim:
            raise UserError(f"model {self.model} was not trained for text prompts; see configs/text.py")
        results = run(self, model, load_text_clip(model, self.clip))
        return EvalReport("Text to mask: mIoU in percent", text_table(results), results)


def sample_phrases(rows: Sequence[PhrasedExample], max_images: int, max_texts: int, seed: int) -> list[PhrasedExample]:
    """Draws a random sample of the images, and of the texts of each image; 0 means all."""
    rng = np.random.default_rng(seed)
    sample = []
    for index in sorted(rng.permutation(len(rows))[: max_images or None]):
        row = rows[index]
        kept = sorted(rng.permutation(len(row.texts))[: max_texts or None])
        masks = tuple(row.example.masks[i] for i in kept)
        sample.append(PhrasedExample(dataclasses.replace(row.example, masks=masks), tuple(row.texts[i] for i in kept)))
    return sample


def exchange_texts(rows: Sequence[PhrasedExample], seed: int) -> list[tuple[str, ...]]:
    """Permutes the texts of a sample so that no mask keeps a text equal to its own.

    Raises:
        UserError: more than half of the masks have the same text.
    """
    texts = np.array([text for row in rows for text in row.texts])
    # Grouped by text in random order and shifted by the size of the largest group, no text meets itself.
    names, numbers, counts = np.unique(texts, return_inverse=True, return_counts=True)
    if counts.max() * 2 > len(texts):
        raise UserError(f"cannot exchange texts: {counts.max()} of {len(texts)} are {str(names[counts.argmax()])!r}")
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.permutation(len(texts)), rng.permutation(len(names))[numbers]))
    others = np.empty_like(texts)
    others[order] = np.roll(texts[order], counts.max())
    ends = np.cumsum([len(row.texts) for row in rows])
    return [tuple(part.tolist()) for part in np.split(others, ends[:-1])]


def evaluate_image(predictor: SamPredictor, row: PhrasedExample, others: Sequence[str]) -> ImageRecord:
    """Computes the IoUs of all prompts for each text of an image.

    Args:
        others: for each text, the text that it is exchanged with.
    """
    ground_truths = [decode_rle(mask) for mask in row.example.masks]
    predictor.set_image(row.example.image())
    clicks = [first_click(ground_truth) for ground_truth in ground_truths]
    prompts = [Prompt(text=text) for text in row.texts]
    prompts += [Prompt(text=text) for text in others]
    prompts += [Prompt(np.array([xy]), np.array([label])) for xy, label in clicks]
    predictions = predictor.predict_prompts(prompts)
    best = predictions.iou_predictions.argmax(-1)
    best_masks = [predictions.masks[q, m] for q, m in enumerate(best)]
    corrected = _correct(predictor, row, ground_truths, predictions, best)
    n = len(ground_truths)
    records = [
        {
            "text": row.texts[i],
            "text_iou": mask_iou(best_masks[i], ground_truth),
            "text_best_iou": max(mask_iou(mask, ground_truth) for mask in predictions.masks[i]),
            "text_and_click_iou": mask_iou(corrected[i], ground_truth),
            "click_iou": mask_iou(best_masks[2 * n + i], ground_truth),
            "other_text_iou": mask_iou(best_masks[n + i], ground_truth),
        }
        for i, ground_truth in enumerate(ground_truths)
    ]
    dataset, image = _key(row)
    return {"dataset": dataset, "picture": image, "masks": records, "problems": []}


def _key(row: PhrasedExample) -> tuple[str, str]:
    return row.example.dataset, row.example.path.stem


def _correct(
    predictor: SamPredictor,
    row: PhrasedExample,
    ground_truths: Sequence[np.ndarray],
    predictions: Masks,
    best: np.ndarray,
) -> list[np.ndarray]:
    """Predicts the mask of each text after one corrective click; a perfect mask gets no click."""
    masks = [predictions.masks[i, best[i]] for i in range(len(ground_truths))]
    clicks = [next_click(ground_truth, mask, []) for ground_truth, mask in zip(ground_truths, masks, strict=True)]
    prompts = {
        i: Prompt(
            np.array([click[0]]), np.array([click[1]]), None, predictions.low_res_logits[i, best[i]], row.texts[i]
        )
        for i, click in enumerate(clicks)
        if click is not None
    }
    if prompts:
        corrected = predictor.predict_prompts(list(prompts.values()), multimask_output=False)
        for i, mask in zip(prompts, corrected.masks[:, 0], strict=True):
            masks[i] = mask
    return masks


def run(config: TextEvalConfig, model: Sam, clip: Clip) -> dict[str, Any]:
    """Evaluates a model; several processes divide the images. Records go to out/text.jsonl, a line per image.

    Returns:
        The numbers of images and masks, and the mIoU of each of `ROWS` in percent.
    """
    predictor = SamPredictor(model, clip)
    rows = read_phrases(config.data, config.images, min_area=config.min_area)
    rows = sample_phrases(rows, config.max_images, config.max_texts, config.seed)
    others = exchange_texts(rows, config.seed)
    protocol = {
        "model": model_identity(model),
        "clip": clip.config.name,
        "data": str(config.data),
        "max_pictures": config.max_images,
        "max_texts": config.max_texts,
        "min_area": config.min_area,
        "seed": config.seed,
    }
    log = RecordLog(config.out, "text", protocol, jax.process_index())
    known = {image_key(line): line for part in all_gather(list(log.lines.values())) for line in part}
    todo = [pair for pair in zip(rows, others, strict=True) if _key(pair[0]) not in known]
    mine = []
    for row, exchanged in ProgressBar(shard_by_process(todo), desc="text to mask", unit="image"):
        mine.append(evaluate_image(predictor, row, exchanged))
        log.write(mine[-1])
    known |= {image_key(line): line for part in all_gather(mine) for line in part}
    if jax.process_index() == 0:
        log.finish(known.values())
    records = [record for row in rows for record in known[_key(row)]["masks"]]
    means = {name: 100 * float(np.mean([record[f"{name}_iou"] for record in records])) for name in ROWS}
    return {"pictures": len(rows), "masks": len(records)} | means


def text_table(results: dict[str, Any]) -> str:
    """Formats a Markdown table with the mIoU of each kind of prompt."""
    lines = [f"| prompt | mIoU of {results['masks']} masks in {results['pictures']} images |", "|---|---|"]
    return "\n".join([*lines, *(f"| {label} | {results[name]:.1f} |" for name, label in ROWS.items())]) + "\n"
