"""Loads models by name or path: downloads them once, verifies, converts and caches them.

The cache is `SAM_JAX_CACHE`, else `sam_jax` in `XDG_CACHE_HOME`, else `~/.cache/sam_jax`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Generic

import jax.numpy as jnp
from filelock import FileLock

from sam_jax.checkpoints.clip import CLIP
from sam_jax.checkpoints.detector import DETECTOR
from sam_jax.checkpoints.family import C, Family
from sam_jax.checkpoints.files import convert_checkpoint, load_checkpoint, load_everything_options
from sam_jax.checkpoints.repositories import fetch_repository, is_repository_name
from sam_jax.checkpoints.ritm import RITM
from sam_jax.checkpoints.sam import SAM
from sam_jax.clip.config import CLIP_B16, CLIP_B32, CLIP_L14, CLIP_L14_336, ClipConfig
from sam_jax.clip.model import Clip
from sam_jax.config import MOBILE_SAM, NO_OPTIONS, SMALL, VIT_B, VIT_H, VIT_L, EverythingOptions, SamConfig
from sam_jax.detection.config import DetectorConfig
from sam_jax.detection.model import Detector
from sam_jax.errors import DownloadFailed, MissingPackage, UserError
from sam_jax.files import digest_file, make_folder, open_to_write_bytes, remove
from sam_jax.model import Sam
from sam_jax.modeling.resize import resize_positions
from sam_jax.progress import ProgressBar
from sam_jax.ritm.model import Ritm

TIMEOUT = 60.0  # seconds without a byte
CHUNK = 1 << 20
EMBEDDED = SMALL.name  # the model that the package holds
REPLACED = {"tiny": EMBEDDED}  # names of models that the package held before, and what took their place


@dataclasses.dataclass(frozen=True)
class Release(Generic[C]):
    """A published checkpoint."""

    config: C
    url: str
    sha256: str  # of the whole file

    @property
    def file_name(self) -> str:
        """Returns the last part of the address."""
        return self.url.rsplit("/", 1)[-1]


_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything"
RELEASES: dict[str, Release[SamConfig]] = {
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
    "mobile_sam": Release(  # the sum is what several public projects pin for this file
        MOBILE_SAM,
        "https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
}


def _openai(config: ClipConfig, sha256: str, file_name: str) -> Release[ClipConfig]:
    # OpenAI's addresses hold the sums.
    return Release(config, f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file_name}", sha256)


CLIP_RELEASES: dict[str, Release[ClipConfig]] = {
    "clip_b32": _openai(CLIP_B32, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "clip_b16": _openai(CLIP_B16, "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "clip_l14": _openai(CLIP_L14, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "clip_l14_336": _openai(
        CLIP_L14_336, "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt"
    ),
}


def load_model(
    name_or_path: str | Path = EMBEDDED,
    *,
    dtype: Any = jnp.float32,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    releases: Mapping[str, Release[SamConfig]] = RELEASES,
) -> Sam:
    """Loads a SAM model, ready to predict.

    Args:
        name_or_path: `small` (in the package, no network), `vit_b`, `vit_l`, `vit_h`, `mobile_sam` (downloaded once),
            the path of a checkpoint (ours, an official .pth, or a Hugging Face file or folder), or OWNER/NAME of a
            `SamModel` on the Hugging Face Hub, such as facebook/sam-vit-base.
        dtype: number format of the arithmetic; float32 or bfloat16.
        image_size: side of the input frame, pixels, in place of the one that the model was trained with: positions are
            resized as fine-tuning does. A smaller one is faster and sees less; None: as trained.
        cache_dir: folder to use in place of the cache that the environment names; for OWNER/NAME that is the Hub's.
        releases: the checkpoint that each name stands for.

    Raises:
        UserError: the name is unknown, the file is no checkpoint, the download is not the published file, or the
            encoder cannot have this image size.
        DownloadFailed: the download broke off; what came of it is kept and the next call goes on from there.
        MissingPackage: a .pth needs PyTorch, or the Hub huggingface_hub, which is not installed; said before anything
            is downloaded.
    """
    with _locate_model(name_or_path, releases, cache_dir) as path:
        params, config = load_checkpoint(path, SAM)
        if image_size is not None:
            trained, config = config, config.with_image_size(image_size)
            params = resize_positions(params, trained, config)
        return Sam(config, params, dtype, load_everything_options(path))


def model_everything_options(name_or_path: str | Path) -> EverythingOptions:
    """Returns what a model's checkpoint says of everything mode. No params are read, and nothing is downloaded.

    Args:
        name_or_path: as for `load_model`.

    Raises:
        UserError: the name is unknown, or the checkpoint says something that is unknown or out of its range.
    """
    name = str(name_or_path)
    if name in RELEASES or (is_repository_name(name) and not Path(name).exists()):  # which say nothing of it
        return NO_OPTIONS
    with _locate_model(name_or_path, RELEASES, None) as path:
        return load_everything_options(path)


@contextlib.contextmanager
def _locate_model(
    name_or_path: str | Path, releases: Mapping[str, Release[SamConfig]], cache_dir: str | Path | None
) -> Iterator[Path]:
    """Gives the path of a SAM's checkpoint: the one in the package, a released one, or any other."""
    name = str(name_or_path)
    if name == EMBEDDED:
        with resources.as_file(resources.files("sam_jax") / "assets" / f"{EMBEDDED}.safetensors") as path:
            yield path
        return
    if name in REPLACED and not Path(name).exists():
        raise UserError(
            f"the model {name!r} is no longer in the package: {REPLACED[name]!r} replaced it, which is the default; "
            "earlier checkpoints of it are loaded by their paths"
        )
    yield _locate(name_or_path, SAM, releases, cache_dir, (EMBEDDED, *releases), needs_pytorch=True)


def load_clip(
    name_or_path: str | Path,
    *,
    dtype: Any = jnp.float32,
    cache_dir: str | Path | None = None,
    releases: Mapping[str, Release[ClipConfig]] = CLIP_RELEASES,
) -> Clip:
    """Loads a CLIP, ready to embed texts and objects.

    Args:
        name_or_path: `clip_b32`, `clip_b16`, `clip_l14`, `clip_l14_336` (downloaded once, from OpenAI; no PyTorch
            needed), the path of a checkpoint (ours, OpenAI's, or a Hugging Face folder), or OWNER/NAME of a `CLIPModel`
            on the Hugging Face Hub.
        dtype: as for `load_model`.
        cache_dir: likewise.
        releases: likewise.

    Raises:
        UserError, DownloadFailed, MissingPackage: as `load_model`.
    """
    params, config = load_checkpoint(_locate(name_or_path, CLIP, releases, cache_dir, releases), CLIP)
    return Clip(config, params, dtype)


def load_text_clip(model: Sam, given: str | Path | None = None) -> Clip:
    """Loads the CLIP that a model's text prompts need.

    Args:
        model: a model with text prompts.
        given: name or path, as for `load_clip`; None: the one that the model names.

    Raises:
        UserError: the model was trained with a CLIP that nobody published, and none is given; or as `load_clip`.
    """
    own = model.config.text_encoder
    if given is None and own not in CLIP_RELEASES and not Path(own).exists():
        raise UserError(
            f"model {model.config.name!r} was trained with a CLIP of its own, {own!r}; give the path of its checkpoint "
            "with --clip"
        )
    return load_clip(given or own)


def load_ritm(path: str | Path) -> Ritm:
    """Loads a RITM model, to answer clicks with `sam_jax.ritm.RitmPredictor`.

    Args:
        path: path of our file, or of a published `.pth`, which needs PyTorch.

    Raises:
        UserError, MissingPackage: as `load_checkpoint`.
    """
    params, config = load_checkpoint(path, RITM)
    return Ritm(config, params)


def load_detector(path: str | Path, config: DetectorConfig | None = None, *, dtype: Any = jnp.float32) -> Detector:
    """Loads a ViTDet detector.

    Args:
        path: path of our file, or of detectron2's (.pkl; .pth, which needs PyTorch; its tensors as .safetensors).
        config: config of a detectron2 file; None: the published detector with the same width, heads and classes.
        dtype: number format of the arithmetic.

    Raises:
        UserError, MissingPackage: as `load_checkpoint`.
    """
    params, config = load_checkpoint(path, DETECTOR, config)
    return Detector(config, params, dtype)


def default_cache_dir() -> Path:
    """Returns the folder of downloaded models: SAM_JAX_CACHE, else `sam_jax` in XDG_CACHE_HOME, else in ~/.cache."""
    if folder := os.environ.get("SAM_JAX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_jax"


def _locate(
    name_or_path: str | Path,
    family: Family[C],
    releases: Mapping[str, Release[C]],
    cache_dir: str | Path | None,
    names: Iterable[str],
    *,
    needs_pytorch: bool = False,
) -> Path:
    """Returns the path of a checkpoint, which is downloaded if it is a published one that is not there yet."""
    name = str(name_or_path)
    if name in releases:
        return _converted(releases[name], Path(cache_dir or default_cache_dir()), needs_pytorch)
    if Path(name).exists():
        return Path(name)
    if is_repository_name(name):
        return fetch_repository(name, None if cache_dir is None else Path(cache_dir))
    raise UserError(
        f"expected the name of a model ({', '.join(names)}), the path of {family.label}, or OWNER/NAME of one on the "
        f"Hugging Face Hub, got {name!r}, which is none of them; look at the spelling"
    )


def _converted(release: Release[Any], cache_dir: Path, needs_pytorch: bool) -> Path:
    """Returns the path of the release in our format; downloads and converts it where it is not there yet."""
    target = cache_dir / Path(release.file_name).with_suffix(".safetensors")
    if target.exists():
        return target
    if needs_pytorch and importlib.util.find_spec("torch") is None:
        raise MissingPackage(
            f"{release.file_name} is in PyTorch's format, which is converted once and needs PyTorch for that: "
            f"pip install 'sam_jax[convert]', or put {target.name}, converted elsewhere, into {cache_dir}"
        )
    make_folder(cache_dir)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            convert_checkpoint(download(release, cache_dir), target, config=release.config)
    return target


def download(release: Release[Any], folder: Path) -> Path:
    """Downloads a release into `folder` and verifies it. An earlier, interrupted transfer is continued.

    Only one process downloads at a time; the others wait and find the file. It has its name only once it is whole and
    its SHA-256 is right; before, it is called `.part`.

    Returns:
        the path of the verified file.

    Raises:
        DownloadFailed: there is no connection, an HTTP error or a broken transfer.
        UserError: the file has another SHA-256; it is deleted.
    """
    make_folder(folder)
    target = folder / release.file_name
    part = target.with_name(f"{target.name}.part")
    with FileLock(f"{target}.lock"):
        if target.exists():
            return target
        _transfer(release.url, part)
        digest = digest_file(part)
        if digest != release.sha256:
            remove(part)
            raise UserError(
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
                open_to_write_bytes(part, append=resumed) as file,
                ProgressBar(
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
        raise DownloadFailed(f"cannot download {url}: HTTP {error.code} {error.reason}; {advice}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, resets; nonsense in place of HTTP
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DownloadFailed(f"cannot download {url}: {reason}; {advice}. The next call goes on from here") from error
    if total is not None and received < total:
        raise DownloadFailed(f"{url} broke off after {received} of {total} bytes; call again to go on from there")
