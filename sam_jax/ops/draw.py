"""Draws masks and prompts over an image, cuts masks out of it, and puts images with captions together."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from sam_jax.ops.rle import Rle, coco_bbox, decode_rle, rle_area

# Okabe-Ito: told apart by colour-blind eyes too. Blue first, which few objects have.
COLOURS = np.array(
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [230, 159, 0], [240, 228, 66]]
)
GREEN, RED, WHITE = (60, 220, 80), (240, 60, 60), (255, 255, 255)


def draw_masks(
    image: UInt8[np.ndarray, "H W 3"],
    masks: Sequence[Bool[np.ndarray, "H W"]] | Bool[np.ndarray, "M H W"],
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
    boxes: Sequence[Sequence[float]] = (),
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws each mask in a colour of its own with a thin white outline, and the prompts over them.

    Args:
        image: RGB.
        points: (x, y) in pixels of the image.
        labels: one for each point: foreground (not 0) is drawn green, background (0) red.
        boxes: (x0, y0, x1, y1) in pixels of the image, drawn green.
        opacity: of the colours, from 0 to 1.

    Returns:
        a new image.
    """
    canvas = image.astype(np.float32)
    for i, mask in enumerate(masks):
        canvas[mask] = (1 - opacity) * canvas[mask] + opacity * COLOURS[i % len(COLOURS)]
    result = np.ascontiguousarray(np.round(canvas).astype(np.uint8))
    side = max(image.shape[:2])
    for mask in masks:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, WHITE, max(1, round(side / 800)), cv2.LINE_AA)
    line = max(1, round(side / 400))
    for x0, y0, x1, y1 in boxes:
        cv2.rectangle(result, (round(x0), round(y0)), (round(x1), round(y1)), GREEN, line)
    for (x, y), label in zip(points, labels, strict=True):
        cv2.circle(result, (round(x), round(y)), 4 * line, GREEN if label else RED, -1, cv2.LINE_AA)
        cv2.circle(result, (round(x), round(y)), 4 * line, WHITE, line, cv2.LINE_AA)
    return result


def draw_everything(
    image: UInt8[np.ndarray, "H W 3"], masks: Sequence[Rle], opacity: float = 0.55
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws every mask in a colour of its own with a thin outline, the small ones on top of the large ones.

    Args:
        image: RGB, of the size of the masks.
        opacity: of the colours, from 0 to 1.

    Returns:
        a new image.
    """
    layer = image.copy()
    outlines: list[np.ndarray] = []
    for i, rle in enumerate(sorted(masks, key=rle_area, reverse=True)):
        x, y, w, h = (int(number) for number in coco_bbox(rle))
        mask = decode_rle(rle)[y : y + h, x : x + w]
        hue = i * 0.618034 % 1  # the golden ratio: neighbours in the order are far apart
        layer[y : y + h, x : x + w][mask] = np.array(colorsys.hsv_to_rgb(hue, 0.75, 1 - 0.3 * (i % 2))) * 255
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        outlines += contours
    result = cv2.addWeighted(image, 1 - opacity, layer, opacity, 0)
    line = max(1, round(max(image.shape[:2]) / 800))
    return cv2.drawContours(result, outlines, -1, WHITE, line, cv2.LINE_AA)


def cut_out(image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a mask's part of an image on white; its edge is soft, so that steps from pixel to pixel do not show."""
    opacity = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None]
    return np.round(opacity * image + (1 - opacity) * np.float32(255)).astype(np.uint8)


def add_caption(image: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "H+30 W 3"]:
    """Returns an image with a line of text on white above it."""
    banner = Image.new("RGB", (image.shape[1], 30), WHITE)
    ImageDraw.Draw(banner).text((2, 4), text, (0, 0, 0), ImageFont.load_default(18))
    return np.concatenate([np.asarray(banner), image])


def tile(rows: Sequence[Sequence[UInt8[np.ndarray, "H W 3"]]], gap: int = 10) -> UInt8[np.ndarray, "_ _ 3"]:
    """Returns images of one size as one image, with white between them and around it.

    Args:
        rows: as many images in each row.
        gap: width of the white, pixels.
    """
    edge = ((gap, 0), (gap, 0), (0, 0))
    lines = [np.concatenate([np.pad(image, edge, constant_values=255) for image in row], 1) for row in rows]
    return np.pad(np.concatenate(lines), ((0, gap), (0, gap), (0, 0)), constant_values=255)
