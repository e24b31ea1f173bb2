"""Everything mode finds all masks of an image, from a grid of points. Names and results are the official code's.

Per crop: encode once, then per batch of points one device program decodes, filters and packs (`sam_jax.ops.select`).
The host turns the bits into run lengths, while the device is at the next batch, and removes duplicates at the end.

Reference: paper, section 5 (fully automatic stage) and B; the official `automatic_mask_generator.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sam_jax.config import SamConfig
from sam_jax.errors import UserError, WrongType
from sam_jax.everything.config import PRESETS, MaskGeneratorConfig
from sam_jax.everything.filter_counts import FilterCounts
from sam_jax.model import Sam, check_model
from sam_jax.modeling import (
    SharedImage,
    decode_masks,
    encode_image,
    encode_prompts,
    normalize_images,
    share_image,
)
from sam_jax.ops.boxes import box_nms, mask_box
from sam_jax.ops.grids import crop_boxes
from sam_jax.ops.regions import remove_small_regions
from sam_jax.ops.rle import counts_from_bits, counts_from_mask, mask_from_counts, rle_from_counts
from sam_jax.ops.select import Dropped, Frame, Selection, make_frames, select_masks
from sam_jax.ops.transforms import as_rgb, fit_image, points_to_input
from sam_jax.parallel.local import LocalDevices
from sam_jax.types import FOREGROUND, NOT_A_POINT, Params, Prompts, Record

logger = logging.getLogger(__name__)


class _Candidates(NamedTuple):
    """The masks of one image before they become records; every field has one entry per mask."""

    iou_predictions: np.ndarray
    stability_scores: np.ndarray
    boxes: np.ndarray  # (N, 4), outermost pixels
    points: np.ndarray  # (N, 2)
    crop_boxes: np.ndarray  # (N, 4)
    counts: np.ndarray  # (N,) of arrays: run lengths in the image

    def take(self, rows: np.ndarray) -> _Candidates:
        return _Candidates(*(field[rows] for field in self))

    @classmethod
    def join(cls, parts: Sequence[_Candidates]) -> _Candidates:
        return cls(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


class SamAutomaticMaskGenerator:
    """Finds all masks of an image. The name and methods are the official code's.

    Example:
        ```python
        generator = SamAutomaticMaskGenerator(load_model("vit_b"), points_per_side=16)
        records = generator.generate(image)
        ```

    Args:
        model: the model that predicts the masks.
        config: a `MaskGeneratorConfig`, or the name of a preset: one of `PRESETS`. None: the official preset with the
            values that suit the model, if its checkpoint holds some (`Sam.everything`), in place of its own.
        devices: where to compute; None for the first local device.
        images_per_device: images that `generate_batch` encodes and decodes together on each device.
        overrides: fields of `MaskGeneratorConfig`.

    Raises:
        WrongType: this is no model, or no config.
        UserError: a field is out of its range, or the preset is unknown.
        TypeError: a field is unknown.
    """

    def __init__(
        self,
        model: Sam,
        config: MaskGeneratorConfig | str | None = None,
        *,
        devices: LocalDevices | None = None,
        images_per_device: int = 1,
        **overrides: Any,
    ) -> None:
        check_model(model)
        if config is None:
            config = dataclasses.replace(PRESETS["official"], **model.everything.to_fields())
        elif isinstance(config, str):
            if config not in PRESETS:
                raise UserError(f"expected a preset ({', '.join(PRESETS)}), got {config!r}")
            config = PRESETS[config]
        elif not isinstance(config, MaskGeneratorConfig):
            raise WrongType(
                f"expected a MaskGeneratorConfig or the name of a preset ({', '.join(PRESETS)}), got "
                f"{type(config).__name__} {str(config)[:80]}; give fields by name, such as points_per_side=32"
            )
        if "point_grids" in overrides:
            overrides = {"points_per_side": None} | overrides
        if images_per_device < 1:
            raise UserError(f"expected images_per_device of at least 1, got {images_per_device}")
        self.config = dataclasses.replace(config, **overrides)
        self.devices = devices or LocalDevices((jax.local_devices()[0],))
        self.images_per_device = images_per_device
        self._model_config = model.config
        self._params = self.devices.replicate(model.params)
        self._encode, self._segment = _programs(self.devices, model.config, model.dtype, self.config.multimask_output)

    @property
    def batch_size(self) -> int:
        """Returns the number of images that are computed together, on all devices."""
        return len(self.devices) * self.images_per_device

    def generate(self, image: np.ndarray) -> list[Record]:
        """Finds all masks of an image.

        Args:
            image: (H, W, 3), RGB, uint8; grey and RGBA are taken too.

        Returns:
            A dict per mask: `segmentation` (see `output_mode`), `area` in pixels, `bbox` (x, y, w, h) of the outermost
            pixels, w and h one less than their count as in SA-1B, `predicted_iou`, `point_coords` [[x, y]] that was
            asked with, `stability_score`, `crop_box` (x, y, w, h). That no mask is left is logged, with what each
            filter dropped.

        Raises:
            WrongType, UserError: this is not an image, or it is too small for the layers of crops.
        """
        return self.generate_batch([image])[0]

    def generate_batch(
        self, images: Sequence[np.ndarray], on_empty: Callable[[int, FilterCounts], None] | None = None
    ) -> list[list[Record]]:
        """Does what `generate` does for several images of any sizes, `batch_size` at a time.

        Args:
            on_empty: called with the index of each image that is left without masks, and with what the filters dropped
                there; None logs a warning.
        """
        on_empty = on_empty or self._warn
        images = [self.check_image(image) for image in images]
        layouts = [self._layout(image) for image in images]
        results = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            found: list[list[_Candidates]] = [[] for _ in images[part]]
            dropped = [FilterCounts() for _ in images[part]]
            for crop, layer in enumerate(layouts[0][1]):
                boxes = [boxes[crop] for boxes, _ in layouts[part]]
                for own, new in zip(found, self._segment_crops(images[part], boxes, layer, dropped), strict=True):
                    own.append(new)
            for i, (image, own) in enumerate(zip(images[part], found, strict=True)):
                candidates = _Candidates.join(own)
                records = self._records(candidates, len(own), image.shape[:2])
                if not records:  # what passed the filters before is small: suppression leaves at least one mask
                    on_empty(start + i, dropped[i] + FilterCounts(small=len(candidates.counts)))
                results.append(records)
        return results

    def _warn(self, index: int, dropped: FilterCounts) -> None:
        logger.warning(
            "everything mode leaves an image without masks: %s; lower thresholds such as pred_iou_thresh and "
            "stability_score_thresh let more through",
            dropped.describe(self.config),
        )

    def check_image(self, image: np.ndarray) -> np.ndarray:
        """Returns the image as RGB (H, W, 3), or raises the error that `generate` would raise."""
        image = as_rgb(image)
        self._layout(image)
        return image

    def _layout(self, image: np.ndarray) -> tuple[list[tuple[int, int, int, int]], list[int]]:
        return crop_boxes(image.shape[:2], self.config.crop_n_layers, self.config.crop_overlap_ratio)

    def _segment_crops(
        self,
        images: Sequence[np.ndarray],
        boxes: Sequence[tuple[int, int, int, int]],
        layer: int,
        dropped: list[FilterCounts],
    ) -> list[_Candidates]:
        """Finds the masks of one crop of each image, without duplicates, in the images' frames.

        Adds to `dropped` of each image what the filters drop.
        """
        # A last batch that is not full is filled with its first image, whose prompts then are not valid.
        fill = [*range(len(images)), *[0] * (self.batch_size - len(images))]
        side = self._model_config.image_size
        crops = [image[y0:y1, x0:x1] for image, (x0, y0, x1, y1) in zip(images, boxes, strict=True)]
        sizes = [(crop.shape[0], crop.shape[1]) for crop in crops]
        inputs, input_sizes = zip(*(fit_image(crop, side) for crop in crops), strict=True)
        encoded = self._encode(
            self._params, *self._scatter([inputs[i] for i in fill], [np.array(input_sizes[i], np.int32) for i in fill])
        )
        image_sizes = [image.shape[:2] for image in images]
        thresholds = [self._thresholds(H * W) for H, W in image_sizes]
        frames = make_frames(sizes, boxes, image_sizes, thresholds, self._model_config)
        (frame_batch,) = self._scatter([frames[i] for i in fill])

        grid = self.config.grids()[layer]
        points = [grid * (w, h) for h, w in sizes]
        found: list[list[_Candidates]] = [[] for _ in images]
        at_once = self.config.points_per_batch
        # What a device is given it works through in this order: the points of batch n + 1, the rows of batch n that
        # passed, the points of n + 2. So it has work while the host waits for rows and turns them into run lengths.
        selected: tuple[int, Selection] | None = None
        taken: tuple[int, list[Selection]] | None = None
        for start in [*range(0, len(grid), at_once), None, None]:
            computing = None
            if start is not None:
                count = min(at_once, len(grid) - start)
                rows = np.arange(start, start + at_once).clip(max=len(grid) - 1)
                asked = [points_to_input(points[i][rows], sizes[i], side).astype(np.float32) for i in fill]
                valid = [np.arange(at_once) < (count if j < len(images) else 0) for j in range(len(fill))]
                batch = self._scatter(asked, valid)
                computing = (start, self._segment(self._params, encoded, *batch, frame_batch))
            if taken is not None:
                self._collect(*taken, image_sizes, boxes, points, found, dropped)
            taken = None if selected is None else (selected[0], self._take(selected[1]))
            selected = computing
        results = []
        for own, (x0, y0, _, _) in zip(found, boxes, strict=True):
            candidates = _Candidates.join(own)
            ranks = candidates.iou_predictions
            if self.config.nms_seed is not None:
                ranks = np.random.default_rng(self.config.nms_seed).random(len(ranks))
            candidates = candidates.take(box_nms(candidates.boxes, ranks, self.config.box_nms_thresh))
            results.append(
                candidates._replace(
                    boxes=candidates.boxes + np.array([x0, y0, x0, y0]), points=candidates.points + np.array([x0, y0])
                )
            )
        return results

    def _thresholds(self, pixels: int) -> tuple[float, float, float, float]:
        c = self.config
        lowest_iou = c.pred_iou_thresh if c.pred_iou_thresh > 0 else -np.inf  # as in the official code, 0 means none
        largest = c.max_mask_area * pixels if c.max_mask_area < 1 else np.inf
        return lowest_iou, c.stability_score_thresh, c.stability_score_offset, largest

    def _scatter(self, *batches: Sequence[Any]) -> tuple[Any, ...]:
        """Stacks lists with an entry (array or pytree) per image to arrays (devices, images, ...)."""

        def stack(*entries: np.ndarray) -> np.ndarray:
            return np.stack(entries).reshape(len(self.devices), self.images_per_device, *entries[0].shape)

        return tuple(self.devices.scatter(jax.tree.map(stack, *batch)) for batch in batches)

    def _take(self, selection: Selection) -> list[Selection]:
        """Returns the masks that passed the filters, still on their devices; waits for their numbers alone."""
        counts = np.asarray(selection.kept)
        dropped = jax.tree.map(np.asarray, selection.dropped)
        return [
            Selection(
                count,
                Dropped(*(counts_of_filter[device] for counts_of_filter in dropped)),
                *(self.devices.take(field, device, int(count)) for field in selection[2:]),
            )
            for device, count in enumerate(counts)
        ]

    def _collect(
        self,
        start: int,
        taken: Sequence[Selection],
        image_sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, int, int, int]],
        points: Sequence[np.ndarray],
        found: list[list[_Candidates]],
        dropped: list[FilterCounts],
    ) -> None:
        """Brings the masks of one batch of points to the host, for `found` and `dropped` of each image."""
        per_point = 3 if self.config.multimask_output else 1
        asked = min(self.config.points_per_batch, len(points[0]) - start)
        for device, (count, filtered, *fields) in enumerate(taken):
            index, iou, stability, found_boxes, bits = (np.asarray(field)[:count] for field in fields)
            own, prompt = np.divmod(index, per_point * self.config.points_per_batch)
            first = device * self.images_per_device
            for position in range(first, min(first + self.images_per_device, len(found))):
                rows = np.flatnonzero(own == position - first)
                dropped[position] += FilterCounts.of_device(
                    asked * per_point, Dropped(*(counts[position - first] for counts in filtered))
                )
                x0, y0 = boxes[position][:2]
                runs = np.empty(len(rows), object)
                for j, row in enumerate(rows):
                    # Only the bytes of its box are looked at, and one below: the last bit must be zero.
                    left, top, right, bottom = found_boxes[row]
                    part = bits[row, left : right + 1, top // 8 : (bottom + 1) // 8 + 1]
                    runs[j] = counts_from_bits(part, image_sizes[position], (int(x0 + left), int(y0 + top // 8 * 8)))
                found[position].append(
                    _Candidates(
                        iou[rows],
                        stability[rows],
                        found_boxes[rows],
                        points[position][start + prompt[rows] // per_point],
                        np.tile(np.array(boxes[position]), (len(rows), 1)),
                        runs,
                    )
                )

    def _records(self, candidates: _Candidates, crops: int, size: tuple[int, int]) -> list[Record]:
        """Filters the masks of an image of `size` (H, W) across its crops, and returns their records."""
        c = self.config
        if crops > 1:
            x0, y0, x1, y1 = candidates.crop_boxes.T
            scores = 1 / ((x1 - x0) * (y1 - y0))
            candidates = candidates.take(box_nms(candidates.boxes, scores, c.crop_nms_thresh))
        if c.min_mask_region_area:
            candidates = self._without_small_regions(candidates, size)
        if c.max_masks:
            means = (candidates.iou_predictions + candidates.stability_scores) / 2
            candidates = candidates.take(np.argsort(-means, kind="stable")[: c.max_masks])
        forms: dict[str, Callable[[np.ndarray], Any]] = {
            "binary_mask": lambda counts: mask_from_counts(counts, size),
            "uncompressed_rle": lambda counts: {"size": list(size), "counts": counts.tolist()},
            "coco_rle": lambda counts: rle_from_counts(counts, size),
        }
        form = forms[c.output_mode]
        return [
            {
                "segmentation": form(counts),
                "area": int(counts[1::2].sum()),
                "bbox": _xywh(box),
                "predicted_iou": float(iou),
                "point_coords": [point.tolist()],
                "stability_score": float(stability),
                "crop_box": _xywh(crop_box),
            }
            for iou, stability, box, point, crop_box, counts in zip(*candidates, strict=True)
        ]

    def _without_small_regions(self, candidates: _Candidates, size: tuple[int, int]) -> _Candidates:
        c = self.config
        boxes, runs = candidates.boxes.copy(), candidates.counts.copy()
        untouched, kept = np.ones(len(runs), bool), np.ones(len(runs), bool)
        for i, counts in enumerate(runs):
            mask, filled = remove_small_regions(mask_from_counts(counts, size), c.min_mask_region_area, "holes")
            mask, cleaned = remove_small_regions(mask, c.min_mask_region_area, "islands")
            if filled or cleaned:
                untouched[i] = False
                runs[i], boxes[i] = counts_from_mask(mask), mask_box(mask)
                kept[i] = not c.drop_small_masks or mask.sum() >= c.min_mask_region_area
        candidates = candidates._replace(boxes=boxes, counts=runs).take(np.flatnonzero(kept))
        threshold = max(c.box_nms_thresh, c.crop_nms_thresh)
        return candidates.take(box_nms(candidates.boxes, untouched[kept].astype(np.float32), threshold))


def _xywh(box: np.ndarray) -> list[int]:
    x0, y0, x1, y1 = (int(x) for x in box)
    return [x0, y0, x1 - x0, y1 - y0]


@functools.lru_cache(maxsize=8)
def _programs(
    devices: LocalDevices, config: SamConfig, dtype: Any, multimask_output: bool
) -> tuple[Callable, Callable]:
    """Returns what runs on the devices: functions that encode images, and segment them at a batch of points."""
    # A processor takes the masks one by one; elsewhere a loop of single masks would leave the device idle.
    at_once = 1 if devices.devices[0].platform == "cpu" else 16

    def encode(params: Params, images: Array, sizes: Array) -> tuple[Array, SharedImage]:
        embeddings = encode_image(params, normalize_images(images, sizes, config.encoder), config, dtype=dtype)
        return embeddings, share_image(params, embeddings, config, dtype=dtype)

    def segment(
        params: Params, encoded: tuple[Array, SharedImage], points: Array, valid: Array, frames: Frame
    ) -> Selection:
        embeddings, shared = encoded
        points = jnp.stack([points, jnp.zeros_like(points)], 2)
        labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT]), points.shape[:3])
        prompts = encode_prompts(params, Prompts(points, labels), config, dtype=dtype)
        prediction = decode_masks(
            params, embeddings, prompts, config, multimask_output=multimask_output, dtype=dtype, shared=shared
        )
        return select_masks(prediction.low_res_logits, prediction.iou_predictions, valid, frames, at_once)

    return devices.run_on_each(encode), devices.run_on_each(segment)
