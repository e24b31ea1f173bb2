"""Names and calls of `segment_anything` and transformers that people have in their scripts, on this package's models.

`from sam_jax.compat import sam_model_registry, SamPredictor, SamAutomaticMaskGenerator` takes the place of the import
from `segment_anything`. docs/porting.md says what differs: results are numpy arrays, and inputs may be PyTorch tensors
on the CPU, which is not imported here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from sam_jax.checkpoints.hub import RELEASES, load_model
from sam_jax.errors import UserError
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.model import Sam
from sam_jax.ops.transforms import as_rgb, boxes_to_original, fit_image, input_size, points_to_input, points_to_original
from sam_jax.predictor import SamPredictor as _SamPredictor
from sam_jax.prompting.prompts import Prompt, as_numbers

__all__ = [
    "ResizeLongestSide",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "prompts_from_nested",
    "sam_model_registry",
]

FILLING = (-1, -10)  # labels of points that fill up a batch, in segment_anything and in transformers


class ResizeLongestSide:
    """Moves images, points and boxes to the input frame, whose longer side has `target_length` pixels.

    As `segment_anything.utils.transforms.ResizeLongestSide`. Points and boxes may be arrays or tensors of any leading
    shape; results are arrays, so the methods with `_torch` in their names do the same as those without.
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: Any) -> np.ndarray:
        """Returns the image (H, W, 3) resized, uint8, without padding."""
        frame, (h, w) = fit_image(as_rgb(image), self.target_length)
        return frame[:h, :w].copy()

    def apply_coords(self, coords: Any, original_size: Sequence[int]) -> np.ndarray:
        """Returns points (..., 2), (x, y) in pixels of an image of `original_size` (H, W), in the input frame."""
        H, W = original_size
        return points_to_input(as_numbers(coords, "coords"), (H, W), self.target_length)

    def apply_boxes(self, boxes: Any, original_size: Sequence[int]) -> np.ndarray:
        """Returns boxes (..., 4), (x0, y0, x1, y1), in the input frame, as (N, 4)."""
        return self.apply_coords(as_numbers(boxes, "boxes").reshape(-1, 2, 2), original_size).reshape(-1, 4)

    apply_coords_torch, apply_boxes_torch = apply_coords, apply_boxes

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Returns the size (h, w) of an image of oldh x oldw in the input frame."""
        return input_size((oldh, oldw), long_side_length)


class ImageEncoderSize(NamedTuple):
    """What scripts ask of `sam.image_encoder`."""

    img_size: int


class OfficialPredictor(_SamPredictor):
    """A `SamPredictor` with the official methods for images and prompts that are in the input frame already."""

    device = "cpu"  # where prompts are expected; the model is where JAX has put it

    @property
    def transform(self) -> ResizeLongestSide:
        """Returns what moves images and prompts to the model's input frame."""
        return ResizeLongestSide(self.model.config.image_size)

    @property
    def input_size(self) -> tuple[int, int]:
        """Returns the size (h, w) of the image that is set, in the input frame."""
        return input_size(self.original_size, self.model.config.image_size)

    def set_torch_image(self, transformed_image: Any, original_image_size: Sequence[int]) -> None:
        """Encodes an image that `transform.apply_image` has resized.

        Args:
            transformed_image: (1, 3, h, w), RGB, 0-255.
            original_image_size: (H, W) before.

        Raises:
            UserError: another shape.
        """
        H, W = original_image_size
        side = self.model.config.image_size
        image, size = np.asarray(transformed_image), input_size((H, W), side)
        if image.shape != (1, 3, *size):
            raise UserError(
                f"expected an image of shape {(1, 3, *size)}, (1, 3, h, w), as transform.apply_image makes it of "
                f"{H} x {W} (H x W), got {image.shape}"
            )
        frame = np.zeros((1, side, side, 3), np.uint8)
        frame[0, : size[0], : size[1]] = np.rint(image[0]).clip(0, 255).transpose(1, 2, 0)
        self.set_embedding(self.model.encode_image(frame, np.array([size], np.int32)), (H, W))

    def predict_torch(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicts the masks of Q prompts on the image that is set.

        Args:
            point_coords: (Q, N, 2), (x, y) in the input frame, as `transform.apply_coords` makes them.
            point_labels: (Q, N), 1 foreground, 0 background, -1 no point.
            boxes: (Q, 4), in the input frame.
            mask_input: (Q, 1, S, S), logits of an earlier call.

        Returns:
            Masks (Q, M, H, W), bool, or logits; predicted IoUs (Q, M); low_res logits (Q, M, S, S).

        Raises:
            RuntimeError: no image is set.
            UserError: prompts as `SamPredictor.predict` refuses them, or different numbers of them.
        """
        fixed = copy.copy(self)  # the prompts' image stays theirs, whatever other threads set meanwhile
        size, side = fixed.original_size, self.model.config.image_size
        points = None if point_coords is None else as_numbers(point_coords, "point_coords")
        if points is not None:
            points = points_to_original(points, size, side)
        if boxes is not None:
            boxes = boxes_to_original(as_numbers(boxes, "boxes").reshape(-1, 4), size, side)
        prompts = _prompts(points, point_labels, boxes, mask_input)
        return fixed.predict_prompts(prompts, multimask_output, return_logits)


class OfficialSam(Sam):
    """A model with the attributes and the call that scripts for the official `Sam` use.

    JAX decides where it computes, so `to` and the like change nothing.
    """

    mask_threshold = 0.0
    image_format = "RGB"
    device = "cpu"  # where inputs are expected

    @property
    def image_encoder(self) -> ImageEncoderSize:
        """Returns the side of the input frame, as `image_encoder.img_size`."""
        return ImageEncoderSize(self.config.image_size)

    def to(self, *_: object, **__: object) -> Self:
        """Returns the model."""
        return self

    def eval(self) -> Self:
        """Returns the model."""
        return self

    def __call__(self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool) -> list[dict[str, Any]]:
        """Predicts masks for several images, as the official `Sam.forward`.

        Args:
            batched_input: for each image `image` (3, h, w), resized by `ResizeLongestSide`; `original_size` (H, W); and
                any of `point_coords`, `point_labels`, `boxes` and `mask_inputs`, as `predict_torch` takes them.

        Returns:
            for each image `masks`, `iou_predictions` and `low_res_logits`.

        Raises:
            UserError: as `OfficialPredictor.set_torch_image` and `predict_torch`.
        """
        results = []
        for record in batched_input:
            own = OfficialPredictor(self)
            own.set_torch_image(np.asarray(record["image"])[None], record["original_size"])
            points, labels = record.get("point_coords"), record.get("point_labels")
            masks = record.get("mask_inputs")
            found = own.predict_torch(points, labels, record.get("boxes"), masks, multimask_output)
            results.append(dict(zip(("masks", "iou_predictions", "low_res_logits"), found, strict=True)))
        return results


SamPredictor = OfficialPredictor  # its name in scripts


def _build(name: str, checkpoint: str | Path | None = None) -> OfficialSam:
    """Returns a model of a published size.

    Args:
        checkpoint: a file or folder of that model in any format; None: the published weights, downloaded once. The
            official functions give a model with random weights then.

    Raises:
        UserError: the checkpoint holds another model; and as `load_model`.
    """
    model = load_model(name if checkpoint is None else checkpoint)
    expected = RELEASES[name].config
    if dataclasses.replace(model.config, name=expected.name) != expected:
        raise UserError(
            f"expected a checkpoint of {name}, {checkpoint} holds {model.config.name!r}; "
            f"load_model({str(checkpoint)!r}) takes it as it is"
        )
    return OfficialSam(model.config, model.params, model.dtype, model.everything)


build_sam_vit_h = functools.partial(_build, "vit_h")
build_sam_vit_l = functools.partial(_build, "vit_l")
build_sam_vit_b = functools.partial(_build, "vit_b")
build_sam = build_sam_vit_h
sam_model_registry: dict[str, Callable[..., OfficialSam]] = {
    "default": build_sam_vit_h,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
}


def prompts_from_nested(
    input_points: Any = None, input_labels: Any = None, input_boxes: Any = None
) -> list[list[Prompt]]:
    """Returns the prompts of each image from the nested lists that transformers' `SamProcessor` takes.

    Example:
        ```python
        predict_batch(model, images, prompts_from_nested([[[450, 600]]]))
        ```

    Args:
        input_points: for each image one object's points [[x, y], ...], or those of each object, a level more; pixels of
            the image.
        input_labels: likewise, without the last level: 1 foreground, 0 background, -10 no point. None: all foreground.
        input_boxes: for each image a list of boxes [x0, y0, x1, y1], an object each.

    Raises:
        UserError: other levels, or different numbers of images or objects.
    """
    given = {"input_points": input_points, "input_labels": input_labels, "input_boxes": input_boxes}
    counts = {name: len(value) for name, value in given.items() if value is not None}
    if not counts or len(set(counts.values())) > 1 or ("input_labels" in counts and "input_points" not in counts):
        raise UserError(
            "expected input_points, input_boxes or both, a list for each image, input_labels with points alone; got "
            f"{', '.join(f'{name} of {count} images' for name, count in counts.items()) or 'none'}"
        )
    rows = []
    for image in range(next(iter(counts.values()))):
        points = labels = boxes = None
        if input_points is not None:
            points = _with_objects(as_numbers(input_points[image], "input_points"), 3, "input_points")
            labels = np.ones(points.shape[:2])
            if input_labels is not None:
                labels = _with_objects(as_numbers(input_labels[image], "input_labels"), 2, "input_labels")
        if input_boxes is not None:
            boxes = as_numbers(input_boxes[image], "input_boxes")
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise UserError(f"expected a list of boxes [x0, y0, x1, y1] for each image, got shape {boxes.shape}")
        rows.append(_prompts(points, labels, boxes))
    return rows


def _with_objects(values: np.ndarray, levels: int, name: str) -> np.ndarray:
    if values.ndim not in (levels - 1, levels):
        raise UserError(
            f"expected {name} as [image][point] or [image][object][point]"
            f"{', each (x, y)' if levels == 3 else ''}, got shape {values.shape} for an image"
        )
    return values if values.ndim == levels else values[None]


def _prompts(points: Any, labels: Any, boxes: Any, masks: Any = None) -> list[Prompt]:
    """Returns a prompt for each of Q objects, from arrays whose first axis is Q, without the points that fill up."""
    given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
    arrays = {name: np.asarray(value) for name, value in given.items() if value is not None}
    if ("points" in arrays) != ("labels" in arrays):
        raise UserError("expected points and labels together: one label (1, 0 or -1) for each point")
    if "points" in arrays and arrays["points"].shape != (*arrays["labels"].shape, 2):
        raise UserError(
            f"expected points (Q, N, 2) and labels (Q, N), got {arrays['points'].shape} and {arrays['labels'].shape}"
        )
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"expected as many prompts of each kind, got {counts}")
    prompts = []
    for q in range(next(iter(counts.values()), 1)):
        row = {name: array[q] for name, array in arrays.items()}
        if "labels" in row:
            there = ~np.isin(row["labels"], FILLING)
            row |= {"points": row["points"][there], "labels": row["labels"][there]}
            if not there.any():
                del row["points"], row["labels"]
        prompts.append(Prompt(row.get("points"), row.get("labels"), row.get("boxes"), row.get("masks")))
    return prompts
