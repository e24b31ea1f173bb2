"""Writes the image with its masks in colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sam_jax.everything.formats.common import AnnotatedImage, OutputFormat
from sam_jax.ops.draw import draw_everything


def write_overlay(path: Path, annotated: AnnotatedImage, categories: Sequence[str]) -> None:
    """Writes the image as PNG, with its masks drawn over it."""
    masks = [record["segmentation"] for record in annotated.records]
    Image.fromarray(draw_everything(annotated.read(), masks)).save(path, "PNG")


FORMAT = OutputFormat("overlay", "the image with its masks in colours", ".png", write_overlay)
