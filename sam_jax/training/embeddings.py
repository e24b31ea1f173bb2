"""Embeddings of a frozen image encoder, computed once for all steps of a run and kept in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sam_jax.config import RunConfig, SamConfig
from sam_jax.data.examples import Source
from sam_jax.data.loader import embedding_file
from sam_jax.errors import BadRecord, UserError
from sam_jax.files import make_folder, open_to_write_bytes, replacing
from sam_jax.model import Sam
from sam_jax.parallel.gather import shard_by_process
from sam_jax.predictor import embed
from sam_jax.progress import ProgressBar
from sam_jax.types import Params


def cache_embeddings(
    source: Source,
    params: Params,
    model: SamConfig,
    config: RunConfig,
    folder: Path,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Writes the embedding of each image, float16, to a file of its own in `folder`; those that are there stay.

    The processes of a run share the work, and the folder. An image that cannot be read gets no file: the loader finds
    the same and counts it.

    Args:
        params: of the whole model.
        check_stop: called after every image.

    Raises:
        UserError: the config changes images from step to step.
        KeyboardInterrupt: `check_stop` raised it. What is encoded stays.
    """
    data = config.data
    if data.augments:
        raise UserError(
            "expected images as they are with finetune.cache-embeddings, got data.scale-range, data.flip-probability, "
            "data.colour-jitter, data.mosaic-probability or data.copy-paste-probability; leave them out, or the cache"
        )
    make_folder(folder)
    todo = [i for i in shard_by_process(range(len(source))) if not embedding_file(folder, i).exists()]
    encoder = Sam(model, params, jnp.dtype(config.dtype))
    for index in ProgressBar(todo, desc="encoding images once", unit="image", disable=not todo):
        try:
            image = source[index].image()
        except BadRecord:
            continue
        (embedding,) = embed(encoder, [image])
        path = embedding_file(folder, index)
        with replacing(path) as temporary, open_to_write_bytes(temporary) as file:
            np.save(file, np.asarray(embedding, np.float16))
        check_stop()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("embeddings")
