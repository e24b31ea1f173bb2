"""Generates images of coloured shapes with a description of each: data to learn a text prompt on, anywhere.

They are written as a COCO-format file whose annotations have captions, as sets of referring expressions come.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sam_jax.files import make_folder, write_atomically
from sam_jax.ops.rle import coco_bbox, encode_rle
from sam_jax.progress import ProgressBar

COLOURS = {
    "red": (205, 40, 40),
    "green": (40, 150, 60),
    "blue": (45, 75, 205),
    "yellow": (230, 210, 50),
    "purple": (135, 50, 165),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "ring")
SIDE = 64  # of an image, pixels
RADII = (6.5, 12.5)  # pixels
OVERSAMPLING = 4
TRIES = 60  # to find a place for a shape


@dataclasses.dataclass(frozen=True)
class Shape:
    colour: str
    form: str
    centre: tuple[float, float]  # (x, y), pixels
    radius: float
    mask: Bool[np.ndarray, "S S"]

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.form}"


def draw_image(rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "S S 3"], list[Shape]]:
    """Draws three to five shapes that do not touch, no two of one description, on a plain or mottled ground.

    Returns:
        the image, and its shapes.
    """
    cells = 1 if rng.random() < 0.5 else rng.integers(3, 9)
    ground = rng.integers(70, 150, (1, 1, 3)) + rng.integers(-35, 36, (cells, cells, 3))
    canvas = np.asarray(Image.fromarray(ground.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
    shapes: list[Shape] = []
    for _ in range(rng.integers(3, 6)):
        shape = _place(rng, shapes)
        if shape is not None:
            shapes.append(shape)
            paint = np.array(COLOURS[shape.colour]) + rng.integers(-25, 26, 3)
            canvas = np.where(shape.mask[..., None], paint, canvas)
    canvas += rng.normal(0, 4, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), shapes


def _place(rng: np.random.Generator, others: list[Shape]) -> Shape | None:
    for _ in range(TRIES):
        colour, form = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        radius = rng.uniform(*RADII)
        x, y = rng.uniform(radius + 1, SIDE - radius - 1, 2)
        apart = all(np.hypot(x - o.centre[0], y - o.centre[1]) > radius + o.radius + 2 for o in others)
        if apart and all((colour, form) != (o.colour, o.form) for o in others):
            return Shape(colour, form, (x, y), radius, _form(form, x, y, radius))
    return None


def _form(form: str, x: float, y: float, radius: float) -> Bool[np.ndarray, "S S"]:
    centres = (np.arange(SIDE * OVERSAMPLING, dtype=np.float32) + 0.5) / OVERSAMPLING
    dx, dy = (centres - x)[None], (centres - y)[:, None]
    distance = np.hypot(dx, dy)
    if form == "square":
        inside = np.maximum(abs(dx), abs(dy)) < 0.85 * radius
    elif form == "triangle":
        inside = (dy < 0.7 * radius) & (dy > 2 * abs(dx) - radius)
    elif form == "ring":
        inside = (distance < radius) & (distance > 0.5 * radius)
    else:
        inside = distance < radius
    fraction = inside.reshape(SIDE, OVERSAMPLING, SIDE, OVERSAMPLING).mean((1, 3))
    return fraction > 0.5


def relations(shapes: list[Shape]) -> Iterator[tuple[Shape, Shape, str]]:
    """Yields pairs of shapes with what is said of the first, such as "a red ring left of a blue circle"."""
    for one in shapes:
        for other in shapes:
            dx, dy = (a - b for a, b in zip(one.centre, other.centre, strict=True))
            if one is not other and max(abs(dx), abs(dy)) > 8:
                side = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
                yield one, other, f"{one.caption} {side} {other.caption}"


def write_shapes(folder: Path, num_images: int, seed: int) -> Path:
    """Writes images and `annotations.json`; each annotation has a `caption` that no other in its image has.

    Returns:
        the path of the annotations.
    """
    make_folder(folder / "images")
    images: list[dict] = []
    annotations: list[dict] = []
    for i in ProgressBar(range(num_images), desc="drawing shapes", unit="image"):
        image, shapes = draw_image(np.random.default_rng((seed, i)))
        name = f"{i:06d}.png"
        Image.fromarray(image).save(folder / "images" / name)
        images.append({"id": i, "file_name": name, "height": SIDE, "width": SIDE})
        for shape in shapes:
            rle = encode_rle(shape.mask)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": i,
                    "category_id": SHAPES.index(shape.form),
                    "segmentation": rle,
                    "bbox": coco_bbox(rle),
                    "area": int(shape.mask.sum()),
                    "iscrowd": 0,
                    "caption": shape.caption,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES)]
    path = folder / "annotations.json"
    write_atomically(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
