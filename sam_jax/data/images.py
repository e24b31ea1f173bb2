"""Finds image files and reads them, for all parts of the package."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from sam_jax.errors import EXPECTED_ERRORS, BadRecord, MissingFile, UserError, decoding
from sam_jax.files import open_to_read
from sam_jax.ops.transforms import load_pixels, pillow_to_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".jp2")
MAX_PIXELS = 178_956_970  # of an image that is read; where Pillow suspects a decompression bomb
READER_THREADS = 2
Item = TypeVar("Item")
Content = TypeVar("Content")


def is_image_name(name: str | PurePath) -> bool:
    """Says whether a file's name ends as an image's."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def image_paths(folder: Path) -> list[Path]:
    """Returns all images below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if is_image_name(path) and path.is_file())


def no_images(*places: object) -> UserError:
    """Returns the error that says that no image was found, and what was looked for."""
    return UserError(f"no images in {', '.join(map(str, places))}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")


class ImageFile(NamedTuple):
    path: Path
    name: PurePosixPath  # under which its results go: relative to the folder that was given

    @property
    def image_id(self) -> int:
        """Returns the number of an SA-1B image (sa_123.jpg), and of others 53 bits of a hash of the name."""
        number = re.fullmatch(r"sa_(\d+)", self.name.stem)
        if number:
            return int(number[1])
        return int.from_bytes(hashlib.blake2b(str(self.name).encode(), digest_size=8).digest()) >> 11


def find_images(inputs: Iterable[Path], out: Path) -> list[ImageFile]:
    """Finds the images of a command's inputs: files as they are given, and all images below folders.

    Images below `out` are results and are left out.

    Raises:
        MissingFile: an input is not there.
        UserError: there is no image at all, or there are two whose results would have the same name.
    """
    found: dict[PurePosixPath, ImageFile] = {}
    results = out.resolve()
    for given in inputs:
        if given.is_dir():
            new = [ImageFile(path, PurePosixPath(path.relative_to(given).as_posix())) for path in image_paths(given)]
        elif given.exists():
            new = [ImageFile(given, PurePosixPath(given.name))]
        else:
            raise MissingFile(f"no image or folder at {given}")
        for image_file in new:
            if results in image_file.path.resolve().parents:
                continue
            other = found.setdefault(image_file.name.with_suffix(""), image_file)
            if other.path != image_file.path:
                raise UserError(
                    f"the results of {other.path} and {image_file.path} would have the same name; "
                    "rename one, or run them into different output folders"
                )
    if not found:
        raise no_images(*inputs)
    return list(found.values())


def find_image(stem: Path) -> Path | None:
    """Returns the image of that name with any of the known endings; None: there is none."""
    for suffix in IMAGE_SUFFIXES:
        for ending in (suffix, suffix.upper()):
            path = stem.with_name(stem.name + ending)
            if path.is_file():
                return path
    return None


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file as RGB, upright as its EXIF orientation says.

    Greyscale, palette, CMYK and 16-bit images become 8-bit RGB; transparent parts become white; of an animation, the
    first image.

    Args:
        max_pixels: refuse larger images before they are decoded.

    Raises:
        MissingFile: there is no such file.
        BadRecord: the file is empty, not an image, damaged, or too large.
        UserError: the path is not one of a file.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f"expected an image at {path}, found no file")
    if not path.is_file():
        raise UserError(f"expected an image file, {path} is a folder or a device")
    if path.stat().st_size == 0:
        raise BadRecord("image cannot be decoded", path, "it is an empty file")
    with open_to_read(path) as file:
        return decode_image(file, path, max_pixels=max_pixels)


def decode_image(source: BinaryIO, name: object, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as `read_image` does, from a file that is open.

    Args:
        name: the name that errors give it.

    Raises:
        BadRecord: the file is not an image, damaged, or too large.
    """
    image = load_image(source, name, max_pixels=max_pixels)
    with decoding(name):
        return pillow_to_rgb(image)


def load_image(source: BinaryIO, name: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns an image of an open file, decoded, in the mode in which it is stored; all parts of the package read here.

    Args:
        name: the name that errors give it.

    Raises:
        BadRecord: the file is not an image, damaged, or too large.
    """
    with decoding(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides
        try:
            image = Image.open(source)
        except UnidentifiedImageError as error:
            raise ValueError("expected JPEG, PNG, TIFF, WebP or another format of images") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; scale it down first") from error
    if image.width * image.height > max_pixels:
        raise BadRecord(
            "image too large",
            name,
            f"{image.width} x {image.height} pixels, above the {max_pixels} allowed; scale it down first",
        )
    with decoding(name):
        load_pixels(image)
    return image


def read_batches(
    readers: ThreadPoolExecutor,
    items: Iterable[Item],
    read: Callable[[Item], Content],
    batch_size: int,
    failed: Callable[[Item, str], None],
) -> Iterator[list[tuple[Item, Content]]]:
    """Yields what can be read, `batch_size` items at a time and read ahead; for the rest, `failed` gets the reason."""
    remaining = iter(items)
    reading: deque[tuple[Item, Future[Content]]] = deque()
    batch = []
    while True:
        while len(reading) < batch_size + READER_THREADS and (item := next(remaining, None)) is not None:
            reading.append((item, readers.submit(read, item)))
        if not reading:
            break
        item, future = reading.popleft()
        try:
            batch.append((item, future.result()))
        except EXPECTED_ERRORS as error:
            failed(item, str(error))
        except MemoryError:
            failed(item, "the image takes more memory than there is")
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
