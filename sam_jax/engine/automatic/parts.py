"""Parts of a tar: the blocks of the two files of one image. A tar is a sequence of parts and an end mark.

The bytes depend on the image and its masks alone, and not on time or owner.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from sam_jax.engine.automatic.inputs import ListedImage
from sam_jax.errors import BadRecord, UserError
from sam_jax.everything.filter_counts import FilterCounts
from sam_jax.everything.formats.common import AnnotatedImage
from sam_jax.everything.formats.sa1b import sa1b_content
from sam_jax.ops.transforms import read_orientation
from sam_jax.types import Record

Blur = Callable[[np.ndarray], np.ndarray]
DROPPED = "dropped"  # in the JSON of an image without masks
QUALITY = 95  # of a JPEG that is encoded anew
IDS_PER_IMAGE = 100_000  # ids of masks are unique in the dataset; the paper's grid gives at most 9216 to an image


def load_blur(name: str) -> Blur:
    """Imports the function of a name MODULE:FUNCTION.

    Raises:
        UserError: there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: an invalid module name
        raise UserError(
            f"expected MODULE:FUNCTION of a function that can be imported, got {name!r}: {error}; is its folder in "
            "PYTHONPATH?"
        ) from error
    if not callable(found):
        raise UserError(f"expected MODULE:FUNCTION, {name!r} is a {type(found).__name__} and can't be called")
    return found


def make_part(
    listed: ListedImage,
    encoded: bytes,
    image: np.ndarray,
    records: Sequence[Record],
    dropped: FilterCounts | None,
    blur: Blur | None,
) -> bytes:
    """Returns the blocks of sa_<id>.jpg and sa_<id>.json, or of the JSON alone if there are no masks.

    Args:
        encoded: the contents of the image's file.
        image: (H, W, 3), uint8, RGB, upright: the pixels that were segmented.
        records: the image's masks.
        dropped: what the filters dropped, if there are no masks.
        blur: see `encode_jpeg`.

    Raises:
        BadRecord: `blur` raised an error.
        UserError: `blur` did not return an image of the same shape.
    """
    name = f"sa_{listed.id}"
    annotated = AnnotatedImage(PurePosixPath(name), f"{name}.jpg", listed.id, image.shape[:2], records, lambda: image)
    content = sa1b_content(annotated, first_id=listed.id * IDS_PER_IMAGE)
    if dropped is not None:  # such a part is in no tar
        content |= {DROPPED: dataclasses.asdict(dropped)}
    files = {f"{name}.json": json.dumps(content).encode()}
    if records:
        files = {f"{name}.jpg": encode_jpeg(listed, encoded, image, blur)} | files
    return join_files(files)


def encode_jpeg(listed: ListedImage, encoded: bytes, image: np.ndarray, blur: Blur | None) -> bytes:
    """Returns the image as a JPEG, for release. Without `blur`, an upright RGB JPEG is returned unchanged.

    Masks are found in the original pixels, and `blur` changes only the written image, so that no mask is cut where a
    face is blurred; the paper blurs the images that it releases. With `blur` the image is always encoded anew, without
    metadata such as the location.

    Args:
        blur: takes and returns an image, (H, W, 3), uint8, RGB; hides faces and license plates.

    Raises:
        BadRecord, UserError: see `make_part`.
    """
    if blur is None:
        with Image.open(io.BytesIO(encoded)) as file:
            if file.format == "JPEG" and file.mode == "RGB" and read_orientation(file) == 1:
                return encoded
    else:
        try:
            blurred = blur(image.copy())
        except Exception as error:  # the function is the user's own
            raise BadRecord("blur failed", listed.url, f"{type(error).__name__}: {error}") from error
        if getattr(blurred, "shape", None) != image.shape or getattr(blurred, "dtype", None) != np.uint8:
            got = f"{getattr(blurred, 'shape', type(blurred).__name__)} {getattr(blurred, 'dtype', '')}".strip()
            raise UserError(f"expected of --blur an image of shape {image.shape}, uint8, got {got} for {listed.url}")
        image = blurred
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def join_files(files: Mapping[str, bytes]) -> bytes:
    """Returns the blocks of files in a tar, without an end mark."""
    blocks = []
    for name, data in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        blocks += [member.tobuf(tarfile.USTAR_FORMAT), data, padding]
    return b"".join(blocks)


def read_part(data: bytes) -> dict[str, Any]:
    """Returns the parsed JSON of a part.

    Raises:
        UserError: the part is incomplete or damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = tar.getmembers()
            if sum(tarfile.BLOCKSIZE + member.size + -member.size % tarfile.BLOCKSIZE for member in members) == len(
                data
            ):
                file = tar.extractfile(members[-1])
                assert file is not None
                return json.loads(file.read())
    except (tarfile.TarError, IndexError, ValueError) as error:  # ValueError: invalid JSON
        raise UserError(f"not the blocks of a tar: {error}") from error
    raise UserError("cut off")


def end_mark(length: int) -> bytes:
    """Returns the end of a tar of that length: two empty blocks, and padding to a full record as `tar` writes it."""
    return bytes(2 * tarfile.BLOCKSIZE + -(length + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)
