"""Zip archives of checkpoints, which PyTorch stores uncompressed: none may hold more than its file does."""

from __future__ import annotations

import zipfile
from pathlib import Path

from sam_jax.errors import UserError

DEBUG = ".debug_pkl"  # beside the code in TorchScript; compressed, and never read


def check_archive(path: Path) -> list[str]:
    """Returns the names in an archive, of which what is read comes to no more bytes than the file has.

    Raises:
        UserError: it is damaged, or its files are compressed, which a few bytes could turn into gigabytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # of zipfile, for a damaged directory: bad zips, names that are no text, wrong sizes
        raise UserError(f"expected a checkpoint, {path} is a damaged zip archive: {error}; fetch it again") from error
    inside, on_disk = sum(i.file_size for i in infos if not i.filename.endswith(DEBUG)), path.stat().st_size
    if inside > on_disk:
        raise UserError(
            f"expected a checkpoint, which is stored as it is, {path} is a compressed zip archive: {inside} bytes in "
            f"{on_disk}; save it with torch.save or torch.jit.save"
        )
    return [info.filename for info in infos]
