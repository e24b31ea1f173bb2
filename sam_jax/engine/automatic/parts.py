"""An image and its masks as they go into a tar: the blocks of its two files. A tar is such parts and an end mark.

Bytes depend on the image and its masks alone: no time, no owner.
"""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from sam_jax.engine.automatic.inputs import ListedImage
from sam_jax.errors import BadRecord, UserError
from sam_jax.everything.formats.common import AnnotatedImage
from sam_jax.everything.formats.sa1b import sa1b_content
from sam_jax.types import Record

Blur = Callable[[np.ndarray], np.ndarray]
QUALITY = 95  # of a JPEG that is written anew
IDS_PER_IMAGE = 100_000  # masks have numbers of their own in the whole data set; the paper's grid has 9216 at most


def load_blur(name: str) -> Blur:
    """The function that a name MODULE:FUNCTION stands for.

    Raises:
        ValueError: no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two: no module's name
        raise UserError(
            f"expected MODULE:FUNCTION of a function that can be imported, got {name!r}: {error}; is its folder in "
            "PYTHONPATH?"
        ) from error
    if not callable(found):
        raise UserError(f"expected MODULE:FUNCTION, {name!r} is a {type(found).__name__} and can't be called")
    return found


def make_part(
    listed: ListedImage, encoded: bytes, image: np.ndarray, records: Sequence[Record], blur: Blur | None
) -> bytes:
    """The blocks of sa_<id>.jpg and sa_<id>.json; without masks of the latter alone.

    Args:
        encoded: the image's file.
        image: (H, W, 3), RGB, upright: what was segmented.
        blur: see `to_jpeg`.

    Raises:
        BadRecord: `blur` failed.
        ValueError: `blur` gives something else than an image of the same shape.
    """
    name = f"sa_{listed.id}"
    annotated = AnnotatedImage(PurePosixPath(name), f"{name}.jpg", listed.id, image.shape[:2], records, lambda: image)
    content = sa1b_content(annotated, first_id=listed.id * IDS_PER_IMAGE)
    files = {f"{name}.json": json.dumps(content).encode()}
    if records:
        files = {f"{name}.jpg": to_jpeg(listed, encoded, image, blur)} | files
    return join_files(files)


def to_jpeg(listed: ListedImage, encoded: bytes, image: np.ndarray, blur: Blur | None) -> bytes:
    """The image as it is given away: an RGB JPEG that lies upright keeps its bytes.

    Decision: masks are found in the original pixels and `blur` changes only what is written, so that no object is cut
    where a face in it is blurred; the paper blurs the images that it releases. With `blur` the JPEG is always a
    new one, without metadata such as places.

    Raises:
        BadRecord, ValueError: see `make_part`.
    """
    if blur is None:
        with Image.open(io.BytesIO(encoded)) as file:
            upright = file.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if file.format == "JPEG" and file.mode == "RGB" and upright:
                return encoded
    else:
        try:
            blurred = blur(image.copy())
        except Exception as error:  # it is the user's function
            raise BadRecord("blur failed", listed.url, f"{type(error).__name__}: {error}") from error
        if getattr(blurred, "shape", None) != image.shape or getattr(blurred, "dtype", None) != np.uint8:
            got = f"{getattr(blurred, 'shape', type(blurred).__name__)} {getattr(blurred, 'dtype', '')}".strip()
            raise UserError(f"expected of --blur an image of shape {image.shape}, uint8, got {got} for {listed.url}")
        image = blurred
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def join_files(files: Mapping[str, bytes]) -> bytes:
    """The blocks of files in a tar."""
    blocks = []
    for name, data in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(data)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        blocks += [member.tobuf(tarfile.USTAR_FORMAT), data, padding]
    return b"".join(blocks)


def read_part(data: bytes) -> dict[str, Any]:
    """The JSON in a part.

    Raises:
        ValueError: the part is not whole.
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
    except (tarfile.TarError, IndexError, ValueError) as error:  # ValueError: its JSON is none
        raise UserError(f"not the blocks of a tar: {error}") from error
    raise UserError("cut off")


def end_mark(length: int) -> bytes:
    """What ends a tar of that length: two empty blocks, filled up to a whole record as `tar` does."""
    return bytes(2 * tarfile.BLOCKSIZE + -(length + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)
