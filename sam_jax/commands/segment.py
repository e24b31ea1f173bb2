"""`sam-jax segment`: the objects that points, boxes or a text ask for."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from sam_jax.bounds import CheckedFields, Factor, Share
from sam_jax.commands.results import mask_records, write_files
from sam_jax.data.images import read_image
from sam_jax.errors import UserError
from sam_jax.ops.boxes import zoom_window
from sam_jax.ops.draw import draw_masks
from sam_jax.prompting.prompts import Prompt

if TYPE_CHECKING:
    from sam_jax.predictor import SamPredictor


@dataclasses.dataclass(frozen=True)
class Segment(CheckedFields):
    """Cuts an object out of an image.

    Writes into the output folder, named after the image: an overlay of the best mask, every mask as a PNG, and a JSON
    with COCO run lengths, boxes, areas and predicted IoUs. Example: sam-jax segment cat.jpg --point 320,210

    A model that was trained for text prompts takes a text too: sam-jax segment car.jpg --text "a wheel" --model MODEL
    """

    image: tyro.conf.Positional[Path]
    """JPEG, PNG or any other image."""
    point: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="X,Y")] = ()
    """Pixel x,y in the object; may be given many times."""
    negative_point: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="X,Y")] = ()
    """Pixel x,y outside the object; may be given many times."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """Box x0,y0,x1,y1 around the object, pixels."""
    text: str | None = None
    """What to look for, such as "a wheel", alone or with points and box."""
    model: str = "small"
    """Name (small, vit_b, vit_l, vit_h), path of a checkpoint in any known format, or a Hugging Face OWNER/NAME."""
    clip: str | None = None
    """Name or path of the CLIP for the text; by default the one that the model names."""
    out: Path = Path("masks")
    """Folder for the results."""
    embedding: Path | None = None
    """File that keeps the image's embedding: it is written if it is not there, else read, and the image not encoded."""
    single: bool = False
    """Write one mask in place of three; better for prompts that leave no doubt."""
    zoom: Share | None = None
    """With --box alone: if it covers less of the image than this (0-1), such as 0.05, only what is near is encoded."""

    margin: Factor | None = None
    """With --box: masks end so far beyond it, in parts of its sides at each end; 0: at the box itself."""

    def run(self) -> None:
        """Writes the masks of the prompt into the output folder."""
        from sam_jax.checkpoints.hub import load_model, load_text_clip
        from sam_jax.everything.box_masks import end_at_box
        from sam_jax.predictor import SamPredictor

        image = read_image(self.image)
        positive = [_numbers(text, 2, "--point") for text in self.point]
        negative = [_numbers(text, 2, "--negative-point") for text in self.negative_point]
        points, labels = positive + negative, [1] * len(positive) + [0] * len(negative)
        box = None if self.box is None else np.array(_numbers(self.box, 4, "--box"))
        if not points and box is None and self.text is None:
            raise UserError("expected a prompt: --point x,y, --box x0,y0,x1,y1, --text, or several of them")
        prompt = Prompt(np.array(points) if points else None, np.array(labels) if points else None, box, text=self.text)
        prompt.check(image.shape[:2])
        x0, y0, x1, y1 = 0, 0, image.shape[1], image.shape[0]
        if self.zoom is not None:
            if self.embedding is not None:
                raise UserError("--embedding is of the whole image, and --zoom encodes a part of it: leave one out")
            if box is None or points or self.text is not None:
                raise UserError("--zoom goes with --box alone: points and texts are looked for in the whole image")
            x0, y0, x1, y1 = zoom_window(box, image.shape[:2], self.zoom)
            prompt = Prompt(box=box - np.array([x0, y0, x0, y0]))
        if self.margin is not None and box is None:
            raise UserError("--margin goes with --box, around which masks end")
        model, clip = load_model(self.model), None
        if self.text is not None and model.config.text_dim:  # without a text prompt the predictor says so
            clip = load_text_clip(model, self.clip)
        predictor = SamPredictor(model, clip)
        self._set_image(predictor, image[y0:y1, x0:x1])
        result = predictor.predict_prompts([prompt], multimask_output=not self.single)
        order = np.argsort(-result.iou_predictions[0], kind="stable")
        outside = ((y0, image.shape[0] - y1), (x0, image.shape[1] - x1))
        masks = [np.pad(mask, outside) for mask in result.masks[0][order]]
        if self.margin is not None and box is not None:
            masks = [end_at_box(mask, box, self.margin) for mask in masks]
        scores = result.iou_predictions[0][order]
        stem = self.image.stem
        files = {
            f"{stem}_overlay.png": draw_masks(image, masks[:1], points, labels, [] if box is None else [box.tolist()]),
            **{f"{stem}_mask_{i}.png": mask.astype(np.uint8) * 255 for i, mask in enumerate(masks)},
            f"{stem}.json": {
                "picture": self.image.name,
                "model": self.model,
                "prompt": {"points": points, "labels": labels, "box": None if box is None else box.tolist()}
                | ({} if self.text is None else {"text": self.text}),
                "masks": mask_records(masks, scores),
            },
        }
        write_files(self.out, files)
        if empty := [str(i) for i, mask in enumerate(masks) if not mask.any()]:
            what = f"{len(empty)} of {len(masks)} masks hold no pixel ({', '.join(empty)})"
            print(f"sam-jax: {what}; try another point, or a box", file=sys.stderr)

    def _set_image(self, predictor: SamPredictor, image: np.ndarray) -> None:
        if self.embedding is None or not self.embedding.exists():
            predictor.set_image(image)
            if self.embedding is not None:
                predictor.save_embedding(self.embedding)
            return
        predictor.load_embedding(self.embedding)
        if predictor.original_size != image.shape[:2]:
            raise UserError(
                f"{self.embedding} is of an image of {predictor.original_size} (height, width), {self.image} has "
                f"{image.shape[:2]}: give each image a file of its own"
            )


def _numbers(text: str, count: int, option: str) -> Any:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise UserError(f"{option} expects {count} numbers joined by commas, got {text!r}")
    return values
