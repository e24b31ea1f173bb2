"""Images of a folder for people to annotate, and nothing outside it.

A name comes from the scan and goes into the store; requests carry the store's ids. Names are looked at again whenever a
file is opened, for a link may have been put there since.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sam_jax.data.images import is_image_name, no_images, read_image
from sam_jax.engine.records import StoredImage
from sam_jax.errors import MissingFile, UserError

JPEG_QUALITY = 92


class Scan(NamedTuple):
    """What a folder holds."""

    names: list[str]  # relative to the folder, with slashes, sorted
    refused: list[str]  # links that leave the folder, and names that are no text


def scan(root: Path, leave_out: Path | None = None, *, may_be_empty: bool = False) -> Scan:
    """All images below a folder. Links to files are followed as long as they stay in it, links to folders never.

    Args:
        leave_out: a folder below it that is not looked into: the project's own.
        may_be_empty: to find no image is no error.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is a file, or has no image in it.
    """
    if not root.exists():
        raise MissingFile(f"expected a folder of images at {root}, found nothing")
    if not root.is_dir():
        raise UserError(f"expected a folder of images, {root} is a file")
    names, refused = [], []
    for name in _files(root, leave_out and leave_out.resolve()):
        try:
            name.encode()
            locate(root, name)
        except (UnicodeEncodeError, UserError):
            refused.append(name.encode(errors="replace").decode())
        else:
            names.append(name)
    if not names and not may_be_empty:
        raise no_images(root)
    return Scan(sorted(names), sorted(refused))


def _files(root: Path, leave_out: Path | None) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        here = Path(folder)
        below[:] = sorted(name for name in below if not name.startswith(".") and (here / name).resolve() != leave_out)
        for name in files:
            path = here / name
            if is_image_name(path) and not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix()


def locate(root: Path, name: str) -> Path:
    """The file of a name, with all links followed.

    Raises:
        ValueError: it lies outside the folder.
        FileNotFoundError: it is gone.
    """
    folder = root.resolve()
    try:
        path = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        raise MissingFile(f"expected an image at {name}, found no file") from error
    except (OSError, RuntimeError) as error:  # a ring of links
        raise UserError(f"cannot follow {name}: {error}") from error
    if not path.is_relative_to(folder):
        raise UserError(f"{name} leads out of the folder of images")
    return path


def read_stored(stored: StoredImage, max_pixels: int) -> np.ndarray:
    """An image as RGB, (H, W, 3), upright.

    Raises:
        FileNotFoundError, ValueError: gone, outside its folder, not an image, damaged or too large. No message tells
            where the folder is.
    """
    path = locate(stored.root, stored.name)
    try:
        return read_image(path, max_pixels=max_pixels)
    except UserError as error:
        raise type(error)(str(error).replace(str(path), stored.name)) from error


def to_jpeg(image: np.ndarray) -> bytes:
    """What browsers show, upright and without the file's metadata: where an image was taken is nobody's business."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
