"""`sam-jax demo`: objects cut out of the package's own photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sam_jax.commands.results import mask_records, write_files
from sam_jax.data.images import read_image
from sam_jax.ops.draw import add_caption, cut_out, draw_masks, tile
from sam_jax.ops.regions import remove_small_regions
from sam_jax.prompting.prompts import Prompt

if TYPE_CHECKING:
    from sam_jax.predictor import SamPredictor


def _prompt(click: tuple[int, int] | None = None, box: tuple[int, int, int, int] | None = None) -> Prompt:
    return Prompt(
        points=None if click is None else np.array([click]),
        labels=None if click is None else np.array([1]),
        box=None if box is None else np.array(box),
    )


# What the demonstration asks for, in pixels of the photographs in assets/demo/.
DEMO_PROMPTS = {
    "kingfisher.jpg": {
        "kingfisher": _prompt(box=(160, 36, 412, 356)),
        "branch": _prompt(click=(459, 287), box=(216, 262, 600, 380)),
    },
    "kitten.jpg": {"kitten": _prompt(click=(300, 180))},
    "coffee.jpg": {"cup": _prompt(box=(172, 14, 412, 308)), "bowl of the spoon": _prompt(click=(362, 290))},
}
# Is it the coffee, the cup, or the cup with its saucer?
AMBIGUOUS = ("coffee.jpg", _prompt(click=(287, 150)))


@dataclasses.dataclass(frozen=True)
class Demo:
    """Cuts objects out of photographs that come with the package, with the embedded model."""

    out: Path = Path("demo_output")
    """Folder for the results."""
    model: str = "small"
    """Name or path of a checkpoint."""

    def run(self) -> None:
        """Writes one image of the photographs with their prompts, masks and cut-outs, and the masks as JSON."""
        from sam_jax.checkpoints.hub import load_model
        from sam_jax.predictor import SamPredictor

        model = load_model(self.model)
        predictor, speck = SamPredictor(model), model.everything.min_mask_region_area or 0
        rows, records = [], []
        for file_name, prompts in DEMO_PROMPTS.items():
            image = _photograph(file_name)
            predictor.set_image(image)
            result = predictor.predict_prompts(list(prompts.values()))
            best = result.iou_predictions.argmax(-1)
            masks = [_without_specks(result.masks[q, m], speck) for q, m in enumerate(best)]
            scores = [float(result.iou_predictions[q, m]) for q, m in enumerate(best)]
            named = [f"{name} {score:.2f}" for name, score in zip(prompts, scores, strict=True)]
            rows.append(
                [
                    add_caption(_draw_prompts(image, prompts.values()), f"Prompts: {', '.join(prompts)}"),
                    add_caption(draw_masks(image, masks), f"Masks, predicted IoU: {', '.join(named)}"),
                    add_caption(cut_out(image, np.any(masks, 0)), "Cut out"),
                ]
            )
            records += [
                {"image": file_name, "name": name} | record
                for name, record in zip(prompts, mask_records(masks, scores), strict=True)
            ]
        rows.append(_three_answers(predictor, *AMBIGUOUS, speck))
        files = {"demo.png": tile(rows), "demo.json": {"model": self.model, "masks": records}}
        write_files(self.out, files)


def _photograph(file_name: str) -> np.ndarray:
    with resources.as_file(resources.files("sam_jax") / "assets" / "demo" / file_name) as path:
        return read_image(path)


def _draw_prompts(image: np.ndarray, prompts: Iterable[Prompt], masks: Sequence[np.ndarray] = ()) -> np.ndarray:
    points: list[list[float]] = []
    labels: list[int] = []
    boxes: list[list[float]] = []
    for prompt in prompts:
        points += [] if prompt.points is None else prompt.points.tolist()
        labels += [] if prompt.labels is None else prompt.labels.tolist()
        boxes += [] if prompt.box is None else [prompt.box.tolist()]
    return draw_masks(image, masks, points, labels, boxes)


def _without_specks(mask: np.ndarray, speck: int) -> np.ndarray:
    """Returns a mask without holes and islands of fewer than `speck` pixels, as everything mode gives it."""
    filled, _ = remove_small_regions(mask, speck, "holes")
    return remove_small_regions(filled, speck, "islands")[0]


def _three_answers(predictor: SamPredictor, file_name: str, prompt: Prompt, speck: int) -> list[np.ndarray]:
    """Returns the masks that the model gives to a click that can mean several things, the smallest first."""
    image = _photograph(file_name)
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(prompt.points, prompt.labels)
    masks = np.array([_without_specks(mask, speck) for mask in masks])
    return [
        add_caption(
            _draw_prompts(image, [prompt], [masks[m]]), f"One click, mask {i} of {len(masks)}: {float(scores[m]):.2f}"
        )
        for i, m in enumerate(masks.sum((1, 2)).argsort(kind="stable"), 1)
    ]
