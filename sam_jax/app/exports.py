"""Downloads of saved masks, of one image or of all images, in any output format."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from sam_jax.engine.export import categories_of, saved_masks, write_masks
from sam_jax.engine.records import StoredImage
from sam_jax.engine.store import Store
from sam_jax.files import remove


def export_response(
    store: Store,
    images: Sequence[StoredImage] | None,
    format: str,
    name: str,
    read: Callable[[StoredImage], np.ndarray],
) -> FileResponse:
    """Returns a response with the saved masks: a single file as it is, several files as a zip.

    Args:
        images: images of the project; None means all.
        format: one of `FORMATS`.
        name: file name of the download, without extension.
        read: reads an image's pixels, for the formats that draw on them.
    """
    folder = Path(tempfile.mkdtemp(prefix="sam_jax_export_"))
    try:
        out = folder / "masks"
        write_masks(saved_masks(store, images, read), out, format, categories_of(store))
        files = [path for path in out.rglob("*") if path.is_file()]
        if len(files) == 1:
            (path,) = files
        else:
            path = Path(shutil.make_archive(str(folder / "masks"), "zip", out))
    except BaseException:
        remove(folder)
        raise
    return FileResponse(path, filename=f"{name}{path.suffix}", background=BackgroundTask(remove, folder))


def file_stem(stored: StoredImage) -> str:
    """Returns a file name for a download that is safe in any header and file system."""
    stem = PurePosixPath(stored.name).stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)[:80] or str(stored.id)
