"""What a model predicts on a few images while it is trained: beside the targets, and beside what it predicted first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from sam_jax.data.images import read_image
from sam_jax.files import make_folder, replacing
from sam_jax.ops.draw import add_caption, draw_masks, tile
from sam_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, AnyArray, Batch

SIDE = 320  # of an image in a preview, pixels
FIRST_PROMPT = 2  # tokens: a point and the padding after it, or a box

Column = Sequence[UInt8[np.ndarray, "p p 3"]]


class Preview(NamedTuple):
    """Columns by their captions, each with a square image for every image that is shown."""

    given: dict[str, Column]  # the same after every step
    predicted: dict[str, Column]


def save_preview(preview: Preview, out: Path, step: int) -> None:
    """Writes `predictions/STEP.png` in the run's folder; what was predicted at step 0 stands beside what is now."""
    captions = {**preview.given, **{f"{name}, step {step}": images for name, images in preview.predicted.items()}}
    columns = [add_caption(tile([[image] for image in images], gap=4), name) for name, images in captions.items()]
    folder = out / "predictions"
    start = folder / f"{0:07d}.png"
    if step and start.exists():
        height, width, _ = columns[0].shape
        before = read_image(start)[:, len(preview.given) * width :]
        if before.shape == (height, len(preview.predicted) * width, 3):
            columns.insert(len(preview.given), before)
    path = folder / f"{step:07d}.png"
    make_folder(folder)
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(columns, 1)).save(temporary, "PNG")


def shown_images(batch: Batch) -> tuple[list[int], Column, float]:
    """Returns which images of a batch have masks; these at the size of previews, white beside them; and their scale."""
    assert batch.images is not None
    shown, images = np.flatnonzero(batch.valid.any(1)).tolist(), []
    for b in shown:
        h, w = batch.sizes[b]
        white = np.array(batch.images[b])
        white[h:], white[:, w:] = 255, 255
        images.append(np.asarray(Image.fromarray(white).resize((SIDE, SIDE), Image.Resampling.BOX)))
    return shown, images, SIDE / batch.images.shape[1]


def draw_predictions(
    batch: Batch,
    points: Float[AnyArray, "B Q N 2"],
    labels: Int[AnyArray, "B Q N"],
    first: Bool[AnyArray, "B Q l l"],
    last: Bool[AnyArray, "B Q l l"],
) -> Preview:
    """Draws the first prompts of each image, its target masks, and the masks after the first prompt and at the end.

    Args:
        batch: has images.
        points, labels: of all rounds, in the input frame.
        first, last: masks at any one side.
    """
    shown, images, scale = shown_images(batch)
    prompts = []
    for b, image in zip(shown, images, strict=True):
        valid = batch.valid[b]
        xy, kinds = np.asarray(points)[b, valid, :FIRST_PROMPT] * scale, np.asarray(labels)[b, valid, :FIRST_PROMPT]
        clicks, boxes = kinds == FOREGROUND, (kinds == (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)).all(1)
        prompts.append(
            draw_masks(image, [], xy[clicks].tolist(), kinds[clicks].tolist(), xy[boxes].reshape(-1, 4).tolist())
        )

    def draw(masks: AnyArray) -> Column:
        return [
            draw_masks(image, [_at_preview_size(mask) for mask in np.asarray(masks)[b, batch.valid[b]]])
            for b, image in zip(shown, images, strict=True)
        ]

    predicted = {"after the first prompt": draw(first), "after the last round": draw(last)}
    return Preview({"first prompts": prompts, "target": draw(batch.masks)}, predicted)


def _at_preview_size(mask: Bool[np.ndarray, "l l"]) -> Bool[np.ndarray, "p p"]:
    return np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST))
