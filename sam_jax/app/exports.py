"""What is saved, for download: the masks of one image or of all, in any output format."""

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


def download(
    store: Store,
    images: Sequence[StoredImage] | None,
    format: str,
    name: str,
    read: Callable[[StoredImage], np.ndarray],
) -> FileResponse:
    """Answers with the saved masks: one file as it is, several as a zip.

    Args:
        images: None: all.
        format: one of `FORMATS`.
        name: of the download, without its ending.
        read: gives an image's pixels to formats that show it.
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
    """Returns a name for a download that no header or file system can mistake."""
    stem = PurePosixPath(stored.name).stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)[:80] or str(stored.id)
