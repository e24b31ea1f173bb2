"""Renders the five views of a mask that raters see, as in the paper's study (section D.5)."""

from __future__ import annotations

import functools
import io

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sam_jax.data.images import read_image
from sam_jax.errors import UserError
from sam_jax.evals.rating.study import RatingJob
from sam_jax.ops.rle import decode_rle

VIEWS = ("picture", "overlay", "mask", "zoom", "zoom_overlay")
MAX_SIDE = 2000  # longest side of a view, in pixels
RED, YELLOW, PURPLE, BLUE, WHITE = (255, 0, 0), (253, 231, 37), (68, 1, 84), (30, 100, 255), (255, 255, 255)


def render(job: RatingJob, view: str) -> bytes:
    """Renders a view as PNG.

    The views are the image, the mask in red over it, and the mask in yellow on purple, all with the prompt as a blue
    dot or box; and, zoomed in and without the prompt, the image and the mask over it. A mask over an image has an
    outline, white outside and red inside, so that its boundary is visible on red objects too.

    Raises:
        FileNotFoundError: the image does not exist.
        UserError: the image cannot be read or has another size than the mask.
    """
    assert view in VIEWS
    image, mask = _load(job.picture), decode_rle(job.segmentation)
    if image.shape[:2] != mask.shape:
        raise UserError(f"expected an image of the mask's size {mask.shape}, {job.picture} has {image.shape[:2]}")
    zoomed = view in ("zoom", "zoom_overlay")
    x0, y0, x1, y1 = _zoom_crop(job, mask) if zoomed else (0, 0, mask.shape[1], mask.shape[0])
    image, mask = image[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    # Small crops are enlarged, so that the mask's boundary can be compared with the object's.
    scale = min(MAX_SIDE / max(mask.shape), max(1.0, 800 / max(mask.shape)))
    size = tuple(max(1, round(length * scale)) for length in mask.shape[::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if view == "mask":
        image = np.where(mask[..., None], YELLOW, PURPLE).astype(np.uint8)
    elif view in ("overlay", "zoom_overlay"):
        image = _overlay(image, mask)
    if not zoomed:
        _draw_prompt(image, job, scale)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()


@functools.lru_cache(maxsize=2)
def _load(path: str) -> UInt8[np.ndarray, "H W 3"]:
    return read_image(path)


def _zoom_crop(job: RatingJob, mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Returns the crop (x0, y0, x1, y1) around mask and prompt, with a margin of a quarter of its longer side."""
    H, W = mask.shape
    ys, xs = np.nonzero(mask)
    x, y, w, h = job.box or (*(job.point or (W / 2, H / 2)), 1, 1)
    low = np.array([min(x, xs.min(initial=W)), min(y, ys.min(initial=H))])
    high = np.array([max(x + w, xs.max(initial=0) + 1), max(y + h, ys.max(initial=0) + 1)])
    margin = 0.25 * max(*(high - low), 16)
    x0, y0 = np.clip(np.floor(low - margin), 0, (W - 1, H - 1)).astype(int)
    x1, y1 = np.clip(np.ceil(high + margin), (x0 + 1, y0 + 1), (W, H)).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _overlay(image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    image, width = image.copy(), _line(image)
    filled, near = mask.astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    image[mask] = (0.5 * image[mask] + 0.5 * np.array(RED)).astype(np.uint8)
    image[mask & (cv2.erode(filled, near, borderValue=1) == 0)] = RED
    image[~mask & (cv2.dilate(filled, near, borderValue=0) > 0)] = WHITE
    return image


def _line(image: np.ndarray) -> int:
    """Returns a line width in pixels that is visible when the view takes a third of the page."""
    return max(1, round(max(image.shape[:2]) / 400))


def _draw_prompt(image: np.ndarray, job: RatingJob, scale: float) -> None:
    line = _line(image)

    def place(x: float, y: float) -> tuple[int, int]:
        return round(x * scale), round(y * scale)

    if job.point is not None:
        x, y = job.point
        cv2.circle(image, place(x + 0.5, y + 0.5), 4 * line, WHITE, -1, cv2.LINE_AA)
        cv2.circle(image, place(x + 0.5, y + 0.5), 3 * line, BLUE, -1, cv2.LINE_AA)
    elif job.box is not None:
        x, y, w, h = job.box
        (x0, y0), (x1, y1) = place(x, y), place(x + w, y + h)
        far = 2 * line  # outside of the box, so that it hides nothing
        for width, colour in ((3 * line, WHITE), (line, BLUE)):
            cv2.rectangle(image, (x0 - far, y0 - far), (x1 + far, y1 + far), colour, width)
