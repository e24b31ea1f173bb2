"""Fetches models that others share on the Hugging Face Hub, by the names that transformers takes."""

from __future__ import annotations

import re
from pathlib import Path

from sam_jax.errors import DownloadFailed, MissingPackage, UserError

FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl")


def is_repository_name(name: str) -> bool:
    """Returns whether this is OWNER/NAME, as of a model on the Hub, and cannot be meant as a path that is here."""
    owner, _, model = name.partition("/")
    part = r"\w[\w.-]*"
    return (
        bool(re.fullmatch(part, owner) and re.fullmatch(part, model))
        and not model.endswith(FILE_SUFFIXES)
        and not Path(owner).exists()
    )


def fetch_repository(name: str, cache_dir: Path | None = None) -> Path:
    """Returns the folder of a model on the Hugging Face Hub; what is not in the Hub's cache is downloaded.

    Tensors are taken from safetensors alone. The package `huggingface_hub` does the work, with its token (HF_TOKEN, or
    that of `hf auth login`), its cache (HF_HOME) and its other settings (HF_ENDPOINT, HF_HUB_OFFLINE).

    Args:
        name: OWNER/NAME.
        cache_dir: folder to use in place of its cache.

    Raises:
        MissingPackage: `huggingface_hub` is not installed.
        DownloadFailed: there is no connection, and the cache does not hold the model.
        UserError: there is no such model for this token, or it has no safetensors file.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    except ImportError as error:
        raise MissingPackage(
            f"{name!r} is no path here; to fetch it from the Hugging Face Hub: pip install 'sam_jax[hub]'"
        ) from error
    try:
        folder = Path(snapshot_download(name, cache_dir=cache_dir, allow_patterns=list(FILES)))
    except (RepositoryNotFoundError, GatedRepoError, HFValidationError) as error:
        raise UserError(
            f"{name!r} is no path here, and the Hugging Face Hub has no such model for this token: look at the "
            f"spelling; for a private or gated one set HF_TOKEN or call `hf auth login` ({_first_line(error)})"
        ) from error
    # Its versions stand on other HTTP libraries, whose errors have no class in common.
    except Exception as error:
        raise DownloadFailed(
            f"cannot fetch {name!r} from the Hugging Face Hub, and its cache does not hold the model: check the "
            f"network and HF_HUB_OFFLINE, or give the path of a copy ({_first_line(error)})"
        ) from error
    if not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"expected a safetensors file in {name!r} on the Hugging Face Hub, found none; download its other files "
            "and give their path: sam-jax convert reads .pth and .bin"
        )
    return folder


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
