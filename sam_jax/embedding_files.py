"""Image embeddings as files: what takes the time of a prediction is kept, with the model that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float

from sam_jax.errors import UserError
from sam_jax.files import read_bytes, write_atomically
from sam_jax.model import Sam, model_identity

KEY = "sam_jax_embedding"  # of the facts in the file's metadata
TENSOR = "embedding"


def save_embedding(path: str | Path, model: Sam, embedding: Float[Array, "1 h w E"], size: tuple[int, int]) -> None:
    """Writes the embedding of an image as safetensors, in float32, all at once.

    Args:
        model: encoded the image; a digest of its config and params is in the file.
        size: (H, W) of the image, pixels.
    """
    facts = json.dumps({"model": model_identity(model), "name": model.config.name, "size": list(size)})
    tensors = {TENSOR: np.ascontiguousarray(embedding, np.float32)}
    write_atomically(Path(path), safetensors.numpy.save(tensors, {KEY: facts}))


def load_embedding(path: str | Path, model: Sam) -> tuple[Float[np.ndarray, "1 h w E"], tuple[int, int]]:
    """Returns the embedding of an image and its size (H, W), from a file that `save_embedding` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is none of an embedding, or is damaged, or is of another model.
    """
    path = Path(path)
    data = read_bytes(path)
    try:
        tensors = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        identity, name, (H, W) = facts["model"], facts["name"], facts["size"]
        embedding = tensors[TENSOR]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"expected {path} to be an embedding that sam_jax has saved, it is none ({error!r})") from error
    if identity != model_identity(model):
        raise UserError(
            f"{path} is an embedding of another model ({name!r}, or the same before it was trained further, or with "
            f"another dtype): encode the image again with this one, {model.config.name!r}"
        )
    if not all(isinstance(length, int) and length > 0 for length in (H, W)) or not np.isfinite(embedding).all():
        raise UserError(f"{path} is damaged: expected finite numbers and the size of an image, encode the image again")
    return embedding, (H, W)
