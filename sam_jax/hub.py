"""Models by name or path: download once, verify, convert, cache.

The cache is `SAM_JAX_CACHE`, else `sam_jax` in `XDG_CACHE_HOME`, else `~/.cache/sam_jax`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from filelock import FileLock
from tqdm import tqdm

from sam_jax.checkpoint import load_checkpoint, save_checkpoint
from sam_jax.config import VIT_B, VIT_H, VIT_L, SamConfig
from sam_jax.model import Sam

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Release:
    """A published checkpoint."""

    config: SamConfig
    url: str
    sha256: str  # of the whole file

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything"
RELEASES: dict[str, Release] = {
    "vit_b": Release(
        VIT_B,
        f"{_OFFICIAL}/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": Release(
        VIT_L,
        f"{_OFFICIAL}/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": Release(
        VIT_H,
        f"{_OFFICIAL}/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}


def load_model(
    name_or_path: str | Path = "tiny",
    *,
    dtype: Any = jnp.float32,
    cache_dir: str | Path | None = None,
    releases: Mapping[str, Release] = RELEASES,
) -> Sam:
    """A model, ready to predict.

    Args:
        name_or_path: `tiny` (in the package, no network), `vit_b`, `vit_l`, `vit_h` (downloaded once), or the path of a
            checkpoint: ours, an official .pth, or a Hugging Face file or folder.
        dtype: of the arithmetic; float32 or bfloat16.
        cache_dir: in place of the cache that the environment names.
        releases: what the names mean.

    Raises:
        ValueError: an unknown name, a file that is no checkpoint, or a download that is not the published one.
        ConnectionError: the download failed; what came of it is kept and the next call goes on from there.
        ImportError: a .pth needs PyTorch, which is not installed; said before anything is downloaded.
    """
    name = str(name_or_path)
    if name == "tiny":
        with resources.as_file(resources.files("sam_jax") / "assets" / "tiny.safetensors") as path:
            params, config = load_checkpoint(path)
    elif name in releases:
        params, config = load_checkpoint(_converted(releases[name], Path(cache_dir or default_cache_dir())))
    elif Path(name).exists():
        from sam_jax.convert import load_any

        params, config = load_any(Path(name))
    else:
        raise ValueError(
            f"expected a model's name ({', '.join(['tiny', *releases])}) or the path of a checkpoint, got {name!r}, "
            "which is neither; look at the spelling"
        )
    return Sam(config, params, dtype)


def default_cache_dir() -> Path:
    if folder := os.environ.get("SAM_JAX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_jax"


def _converted(release: Release, cache_dir: Path) -> Path:
    """Path of the release in our format; downloads and converts it where it is not there yet."""
    target = cache_dir / Path(release.file_name).with_suffix(".safetensors")
    if not target.exists():
        from sam_jax.convert import load_any

        if importlib.util.find_spec("torch") is None:
            raise ImportError(
                f"{release.file_name} is in PyTorch's format, which is converted once and needs PyTorch for that: "
                f"pip install 'sam_jax[convert]', or put {target.name}, converted elsewhere, into {cache_dir}"
            )
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                params, config = load_any(download(release, cache_dir), release.config)
                save_checkpoint(target, params, config)
    return target


def download(release: Release, folder: Path) -> Path:
    """Fetches a release into `folder` and verifies it. An earlier, interrupted transfer is continued.

    Only one process downloads at a time; the others wait and find the file. It has its name only once it is whole and
    its SHA-256 is right; before, it is called `.part`.

    Returns:
        path of the verified file.

    Raises:
        ConnectionError: no connection, an HTTP error or a broken transfer.
        ValueError: the wrong SHA-256; the file is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / release.file_name
    part = target.with_name(f"{target.name}.part")
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        _transfer(release.url, part)
        digest = _sha256(part)
        if digest != release.sha256:
            part.unlink()
            raise ValueError(
                f"{release.url} came with SHA-256 {digest}, expected {release.sha256}; the file was deleted. Try "
                "again, and if it stays so, fetch the file yourself from a source you trust and give its path"
            )
        part.replace(target)
    return target


def _transfer(url: str, part: Path) -> None:
    """Appends to `part` what it lacks; starts over where the server cannot send a part."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    advice = f"check the network, or put the file from {url} somewhere and give its path"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            resumed = start > 0 and response.status == 206
            length = response.headers.get("Content-Length")
            total = None if length is None else int(length) + (start if resumed else 0)
            with (
                part.open("ab" if resumed else "wb") as file,
                tqdm(
                    total=total,
                    initial=file.tell(),
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    desc=url.rsplit("/", 1)[-1],
                ) as bar,
            ):
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                received = file.tell()
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: the sum decides whether it is the file
            return
        raise ConnectionError(f"cannot download {url}: HTTP {error.code} {error.reason}; {advice}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, resets; nonsense in place of HTTP
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ConnectionError(f"cannot download {url}: {reason}; {advice}. The next call goes on from here") from error
    if total is not None and received < total:
        raise ConnectionError(f"{url} broke off after {received} of {total} bytes; call again to go on from there")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
