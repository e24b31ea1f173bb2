"""Access to the images of a folder, and to nothing outside it.

Names come from a scan of the folder and are put in the store; requests contain the store's ids. A name is checked again
whenever its file is opened, since a link may have been put there meanwhile.
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
THUMBNAIL = 112  # pixels


class ScannedFolder(NamedTuple):
    """The images of a folder."""

    names: list[str]  # sorted paths relative to the folder, with slashes
    refused: list[str]  # links that lead out of the folder, and names that are not valid text


def scan(root: Path, leave_out: Path | None = None, *, may_be_empty: bool = False) -> ScannedFolder:
    """Finds all images in a folder and below. Links to files are followed if they stay in it, links to folders are not.

    Args:
        leave_out: a folder below `root` that is not searched, such as the project's own.
        may_be_empty: accept a folder without images.

    Raises:
        MissingFile: the folder does not exist.
        UserError: `root` is a file, or contains no images.
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
    return ScannedFolder(sorted(names), sorted(refused))


def _files(root: Path, leave_out: Path | None) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        here = Path(folder)
        below[:] = sorted(name for name in below if not name.startswith(".") and (here / name).resolve() != leave_out)
        for name in files:
            path = here / name
            if is_image_name(path) and not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix()


def locate(root: Path, name: str) -> Path:
    """Returns the path of an image, with all links followed.

    Args:
        root: folder of images.
        name: path relative to it.

    Raises:
        UserError: the file is outside the folder.
        MissingFile: the file does not exist.
    """
    folder = root.resolve()
    try:
        path = (folder / name).resolve(strict=True)
    except FileNotFoundError as error:
        raise MissingFile(f"expected an image at {name}, found no file") from error
    except (OSError, RuntimeError) as error:  # a cycle of links
        raise UserError(f"cannot follow {name}: {error}") from error
    if not path.is_relative_to(folder):
        raise UserError(f"{name} leads out of the folder of images")
    return path


def read_stored(stored: StoredImage, max_pixels: int) -> np.ndarray:
    """Reads an image of a project as an RGB array, (H, W, 3), uint8, upright.

    Args:
        max_pixels: larger images are refused.

    Raises:
        MissingFile: the file does not exist.
        UserError: the file is outside the folder, damaged, too large or not an image. No message reveals where the
            folder is.
    """
    path = locate(stored.root, stored.name)
    try:
        return read_image(path, max_pixels=max_pixels)
    except UserError as error:
        kind = MissingFile if isinstance(error, MissingFile) else UserError
        raise kind(str(error).replace(str(path), stored.name)) from error


def encode_thumbnail(image: np.ndarray) -> bytes:
    """Encodes a small version of an RGB image, of at most `THUMBNAIL` pixels a side, as JPEG."""
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return encode_jpeg(np.asarray(small))


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encodes an RGB image for a browser, without the file's metadata, which may tell where it was taken."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
