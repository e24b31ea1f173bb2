"""Draws batches of examples, by Grain. What a batch holds follows from the seed and the batch's number."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sam_jax.config import DataConfig, EncoderConfig, SamConfig
from sam_jax.data.augment import Row, empty_row, prepare_example, stack_rows
from sam_jax.data.bad_records import BadRecords
from sam_jax.data.cached_views import CachedViews, draw_masks
from sam_jax.data.examples import Example, Source
from sam_jax.data.mask_filters import MaskCounts
from sam_jax.errors import BadRecord, MissingPackage, UserError
from sam_jax.types import Batch

if TYPE_CHECKING:
    import grain

logger = logging.getLogger(__name__)

Element = tuple[Row, BadRecord | None]
"""One image's row, and what is wrong with it."""


def make_loader(
    source: Source,
    *,
    model: SamConfig | EncoderConfig,
    config: DataConfig,
    loss_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    first_batch: int = 0,
    augment: bool = True,
    embeddings: Path | None = None,
    views: CachedViews | None = None,
    bad_records: BadRecords | None = None,
) -> grain.DatasetIterator[Batch]:
    """Yields batches without end: this process's contiguous block of every global batch of `config.batch_size` images.

    Every epoch goes through all images in a new order. An image that can't be used leaves its slot black and
    without valid masks, so that nothing else moves. A batch is a function of the seed and its number alone: a loader
    with `first_batch` k goes on where k batches were drawn, on any number of processes, threads and workers. Call
    `close` at the end.

    Args:
        source: examples by position; with worker processes it is pickled.
        model: the model, or the encoder, whose input frame the images are fitted to.
        loss_size: side of the masks, pixels; the input frame scaled.
        first_batch: number of the first batch, from 0.
        augment: False gives the same fitted, unflipped images every time.
        embeddings: folder of `embedding_file`s, which batches then hold in place of images.
        views: of the source's images, which are drawn in place of these; batches hold their maps.
        bad_records: counts what could not be used; None: a new one with `config.max_bad_fraction`.

    Raises:
        UserError: there are no images, or the batch cannot be divided among the processes. While iterating: too many
            bad records, or no masks.
        MissingPackage: Grain is not installed.
    """
    grain = import_grain()
    if not len(source):
        raise UserError("expected at least one image with masks to train on, got none")
    if config.batch_size % process_count:
        raise UserError(f"batch_size {config.batch_size} cannot be divided among {process_count} processes")
    threads = max(1, config.workers)
    prepare: _Prepare | _Draw = _Prepare(source, model, config, loss_size, augment, embeddings)
    if views is not None:
        prepare = _Draw(views, model.image_size, config)
    batches = (
        grain.MapDataset.source(_Guarded(source if views is None else views))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(prepare)
        .batch(
            config.batch_size // process_count,
            drop_remainder=True,
            batch_fn=_Stack(config.masks_per_image, loss_size),
        )
    )
    first = process_index + first_batch * process_count
    ours = batches[first::process_count]  # those of other processes are never computed
    dataset = ours.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if config.worker_processes:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, and outside an absl program nobody parses
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.worker_processes))
    if bad_records is None:
        bad_records = BadRecords(config.max_bad_fraction)
    return iter(dataset.map(_Report(bad_records, MaskCounts(config, len(source)))))


def import_grain() -> Any:
    """Returns the library that reads the images of a training.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise MissingPackage("training reads its images with grain; pip install 'sam_jax[train]'") from error
    return grain


def check_batch_fits(config: DataConfig, image_size: int) -> None:
    """Refuses a batch whose images alone are larger than the machine's memory, before any of it is allocated.

    Raises:
        UserError: they are.
    """
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory, images = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), config.batch_size * image_size**2 * 3
    if images > memory:
        raise UserError(
            f"expected a data.batch-size that fits into memory, got {config.batch_size:,}: its images of "
            f"{image_size} x {image_size} pixels are {images / 1e9:.0f} GB, this machine has {memory / 1e9:.0f} GB"
        )


def fixed_batches(
    source: Source, count: int, *, model: SamConfig | EncoderConfig, config: DataConfig, loss_size: int, seed: int
) -> list[Batch]:
    """Returns up to `count` global batches without augmentation, always the same, for validation.

    Images are drawn without repetition; the last batch is filled up with empty slots. Bad records are left out.

    Raises:
        UserError: no image can be used, or none of their masks.
    """
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    problem: BadRecord | None = None
    for index in rng.permutation(len(source)).tolist():
        if len(rows) == count * config.batch_size:
            break
        try:
            rows.append(prepare_example(source[index], rng, model.image_size, config, loss_size, augment=False))
        except BadRecord as error:
            logger.warning("not used for validation: %s", error)
            problem = error
    if not rows:
        raise UserError(f"no image to validate on out of {len(source)}" + (f": {problem}" if problem else ""))
    masks = MaskCounts(config, len(rows), "validate on")
    for row in rows:
        masks.count(row.masks, row.dropped)
        for bad_mask in row.unread:
            logger.warning("not used for validation: %s", bad_mask)
    while len(rows) % config.batch_size:
        rows.append(empty_row(model.image_size))
    starts = range(0, len(rows), config.batch_size)
    return [stack_rows(rows[i : i + config.batch_size], config.masks_per_image, loss_size) for i in starts]


def local_part(batch: Batch, process_index: int, process_count: int) -> Batch:
    """Returns a process's block of a global batch."""
    return jax.tree.map(lambda array: np.split(array, process_count)[process_index], batch)


def embedding_file(folder: Path, index: int) -> Path:
    """Returns the path at which the embedding (h, w, D) of a source's image lies, once it is computed."""
    return folder / f"{index:07d}.npy"


# The steps of the pipeline are objects and not closures: worker processes get them pickled.


@dataclasses.dataclass(frozen=True)
class _Guarded:
    """Gives a source's records with their positions, and what is wrong with one in place of raising it."""

    source: Source | CachedViews

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Example | Row | BadRecord]:
        try:
            return index, self.source[index]
        except BadRecord as error:
            return index, error


@dataclasses.dataclass(frozen=True)
class _Prepare:
    source: Source
    model: SamConfig | EncoderConfig
    config: DataConfig
    loss_size: int
    augment: bool
    embeddings: Path | None

    def __call__(self, element: tuple[int, Example | BadRecord], rng: np.random.Generator) -> Element:
        index, record = element
        try:
            if isinstance(record, BadRecord):
                raise record
            args = self.model.image_size, self.config, self.loss_size, self.augment
            row = prepare_example(record, rng, *args, others=self.source)
            problem: BadRecord | None = None
        except BadRecord as error:
            row = empty_row(self.model.image_size)
            problem = error.with_traceback(None)
        if self.embeddings is None:
            return row, problem
        assert isinstance(self.model, SamConfig), "an encoder alone has no embeddings"
        grid, D = self.model.grid_size, self.model.embedding_dim
        nothing = np.zeros((grid, grid, D), np.float16)
        embedding = nothing if problem else np.load(embedding_file(self.embeddings, index))
        return row._replace(image=None, maps={"embedding": embedding}), problem


@dataclasses.dataclass(frozen=True)
class _Draw:
    views: CachedViews
    image_size: int
    config: DataConfig

    def __call__(self, element: tuple[int, Row | BadRecord], rng: np.random.Generator) -> Element:
        _, record = element
        if isinstance(record, BadRecord):
            return self.views.empty_row(self.image_size), record.with_traceback(None)
        return draw_masks(record, rng, self.config), None


class _Slots:
    """Holds what was wrong with each image of a batch, its number of masks, and why it has no more of them.

    Grain does not look into it.
    """

    def __init__(self, elements: Sequence[Element]) -> None:
        self.contents = [(problem, row.masks, row.dropped, row.unread) for row, problem in elements]


@dataclasses.dataclass(frozen=True)
class _Stack:
    masks_per_image: int
    loss_size: int

    def __call__(self, elements: Sequence[Element]) -> tuple[Batch, _Slots]:
        rows = [row for row, _ in elements]
        return stack_rows(rows, self.masks_per_image, self.loss_size), _Slots(elements)


class _Report:
    """Counts bad records, and masks, in the training process, whichever process has read them."""

    def __init__(self, bad_records: BadRecords, masks: MaskCounts) -> None:
        self.bad_records, self.masks = bad_records, masks

    def __call__(self, element: tuple[Batch, _Slots]) -> Batch:
        batch, slots = element
        for problem, used, dropped, unread in slots.contents:
            self.bad_records.count(problem)
            for bad_mask in unread:
                self.bad_records.count_mask(bad_mask)
            if problem is None:
                self.masks.count(used, dropped)
        return batch
