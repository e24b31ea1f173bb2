"""Augmented views of the training images, taken through the frozen part of the image encoder once for all steps."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sam_jax.config import MOST_MASKS, TrainConfig
from sam_jax.data.augment import Row, prepare_example
from sam_jax.data.bad_records import BadRecords
from sam_jax.data.cached_views import CachedViews, ViewFiles, encode_problem, encode_row
from sam_jax.data.examples import Source
from sam_jax.errors import BadRecord, UserError
from sam_jax.files import make_folder, read_json, write_atomically
from sam_jax.modeling import encode_maps, map_shapes, normalize_images
from sam_jax.modeling.encoders.base import EncoderPart
from sam_jax.modeling.image_encoder import frozen_part
from sam_jax.parallel.gather import shard_by_process, sync_processes
from sam_jax.progress import ProgressBar
from sam_jax.training.trainable import trained_in_encoder
from sam_jax.types import Params

RECORD = "views.json"  # beside the files: what they were made with
AT_ONCE = 8  # images that pass the encoder together
# What a cached view does not depend on.
FREE_DATA_FIELDS = ("batch_size", "masks_per_image", "repeat_masks", "workers", "worker_processes", "max_bad_fraction")


def cache_views(
    source: Source, params: Params, config: TrainConfig, folder: Path, check_stop: Callable[[], None] = lambda: None
) -> CachedViews:
    """Writes the maps of `finetune.cache_views` augmented views of each image, float16; files that are there stay.

    The maps are those of the largest part of the encoder before all params that learn. A view follows from the seed and
    its number. The processes of a run share the work, and the folder.

    Args:
        params: of the whole model.
        check_stop: called after every file.

    Raises:
        KeyboardInterrupt: `check_stop` raised it. What is encoded stays.
        UserError: the maps would take more than `finetune.cache_gb`; params learn in the first part of the encoder;
            the folder has views of other images, with other augmentation, or of another encoder.
    """
    finetune = config.finetune
    part = frozen_part(config.model, trained_in_encoder(params, finetune))
    shapes = {name: shape for name, shape in map_shapes(config.model).items() if name in part.maps}
    files = ViewFiles(folder, len(source), finetune.cache_views, shapes)
    if files.total_bytes > finetune.cache_gb * 1e9:
        raise UserError(
            f"expected maps of at most {finetune.cache_gb:g} GB (finetune.cache-gb), those of {finetune.cache_views} "
            f"views of {len(source)} images come to {files.total_bytes / 1e9:.3g} GB ({', '.join(shapes)}: "
            f"{files.view_bytes / 1e6:.3g} MB a view); allow more, or ask for fewer views (finetune.cache-views)"
        )
    with sync_processes():
        _claim(folder, _origin(source, params, config, part))
        bad_records = BadRecords(config.data.max_bad_fraction)
        todo = [file for file in shard_by_process(files) if not file.path.exists()]
        encode = _compile_encoder(params, config, part)
        with (
            ThreadPoolExecutor(max(1, config.data.workers)) as threads,
            ProgressBar(
                total=sum(len(file.numbers) for file in todo), desc="encoding views once", disable=not todo
            ) as bar,
        ):
            for file in todo:
                rows = list(threads.map(functools.partial(_make_view, source, config), file.numbers))
                for bad_mask in (problem for row in rows if isinstance(row, Row) for problem in row.unread):
                    bad_records.count_mask(bad_mask)
                file.write(_encode_rows(rows, encode, bar))
                check_stop()
    return CachedViews(files)


def _make_view(source: Source, config: TrainConfig, number: int) -> Row | BadRecord:
    """Returns a view with all its masks, or what is wrong with the image."""
    rng = np.random.default_rng((config.seed, number))
    data = dataclasses.replace(config.data, masks_per_image=MOST_MASKS, repeat_masks=False)
    try:
        example = source[number % len(source)]
        return prepare_example(example, rng, config.model.image_size, data, config.loss.size, True, source)
    except BadRecord as problem:
        return problem


def _encode_rows(
    rows: Sequence[Row | BadRecord], encode: Callable[[np.ndarray, np.ndarray], Any], bar: ProgressBar
) -> list[bytes]:
    """Returns the records of views."""
    records = {i: encode_problem(row) for i, row in enumerate(rows) if isinstance(row, BadRecord)}
    good = [(i, row) for i, row in enumerate(rows) if not isinstance(row, BadRecord)]
    bar.update(len(records))
    for start in range(0, len(good), AT_ONCE):
        chunk = good[start : start + AT_ONCE]
        padded = [chunk[k % len(chunk)][1] for k in range(AT_ONCE)]  # one shape, compiled once
        images = np.stack([row.image for row in padded if row.image is not None])
        maps = encode(images, np.array([row.size for row in padded], np.int32))
        for k, (i, row) in enumerate(chunk):
            records[i] = encode_row(row._replace(maps={name: value[k] for name, value in maps.items()}))
        bar.update(len(chunk))
    return [records[i] for i in range(len(rows))]


def _compile_encoder(
    params: Params, config: TrainConfig, part: EncoderPart
) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """Returns a function that gives the maps of images (B, S, S, 3) of sizes (B, 2)."""
    model, dtype = config.model, jnp.dtype(config.dtype)

    @jax.jit
    def run(params: Params, images: Any, sizes: Any) -> dict[str, Any]:
        maps = encode_maps(params, normalize_images(images, sizes, model.encoder), model, part.maps, dtype=dtype)
        return {name: value.astype(jnp.float16) for name, value in maps.items()}

    own = {"image_encoder": params["image_encoder"]}
    return lambda images, sizes: jax.device_get(run(own, images, sizes))


def _origin(source: Source, params: Params, config: TrainConfig, part: EncoderPart) -> dict[str, Any]:
    """Returns all that cached views follow from, as JSON holds it; of the params a digest."""
    flat = flatten_dict(params["image_encoder"], sep="/")
    digest = hashlib.sha256()
    for name in sorted(name for name in flat if part.has(name)):
        digest.update(name.encode() + np.asarray(flat[name]).tobytes())
    data = {name: value for name, value in dataclasses.asdict(config.data).items() if name not in FREE_DATA_FIELDS}
    origin = {
        "images": len(source),
        "data": data,
        "seed": config.seed,
        "loss.size": config.loss.size,
        "dtype": config.dtype,
        "model.encoder": config.model.encoder.to_fields(),
        "maps": part.maps,
        "params": digest.hexdigest(),
    }
    return json.loads(json.dumps(origin, default=str))


def _claim(folder: Path, origin: dict[str, Any]) -> None:
    """Writes what the views are made with, or checks that it is what those in the folder were made with.

    Raises:
        UserError: it is something else.
    """
    make_folder(folder)
    record = folder / RECORD
    if not record.exists():
        write_atomically(record, json.dumps(origin, indent=1))
        return
    known = read_json(record)
    if other := sorted(name for name in origin if known.get(name) != origin[name]):
        raise UserError(
            f"the views in {folder} were made with other {', '.join(other)}; give another finetune.cache-folder, or "
            "remove that one"
        )
