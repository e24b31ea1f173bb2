"""Defines TFDS builders, one per kind of source, which write the same records to ArrayRecord files.

TensorFlow is not needed, but tensorflow_datasets is, so only what prepares data imports this.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sam_jax.data.bad_records import BadRecords, PreparationReport
from sam_jax.data.examples import Example, Source
from sam_jax.errors import BadRecord, UserError
from sam_jax.ops.rle import coco_bbox, counts_from_rle
from sam_jax.progress import ProgressBar


def features() -> tfds.features.FeaturesDict:
    """Returns the features of a record. Images are JPEG or PNG as they were, masks COCO run lengths."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "id": tfds.features.Text(),
            "dataset": tfds.features.Text(),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),  # (h, w)
            "masks": tfds.features.Sequence(
                {
                    "counts": tfds.features.Text(),
                    "area": tfds.features.Scalar(dtype=np.int64),  # pixels
                    "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),  # x, y, width, height; one pixel has 1
                }
            ),
        }
    )


def to_record(example: Example) -> dict[str, Any]:
    """Returns an example as `features` describes it, once it is known to be sound.

    Raises:
        BadRecord: the image cannot be decoded or has another size than its masks.
    """
    areas = [int(counts_from_rle(rle)[1::2].sum()) for rle in example.masks]
    return {
        "image": io.BytesIO(encoded_image(example)),
        "id": example.name,
        "dataset": example.dataset,
        "size": np.array(example.size, np.int32),
        "masks": [
            {"counts": rle["counts"], "area": area, "box": np.array(coco_bbox(rle), np.float32)}
            for rle, area in zip(example.masks, areas, strict=True)
        ],
    }


def encoded_image(example: Example) -> bytes:
    """Returns the image's own bytes if they are JPEG or PNG, and else a PNG of it.

    The image is decoded once, to know that the bytes are whole.

    Raises:
        BadRecord: see `Example.pil_image`.
    """
    data, image = example.read(), example.pil_image()
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return data
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the records of sources, one split each, with a progress bar.

    Args:
        splits: the source of each split, by the split's name.
        max_bad_fraction: fraction of the records that may be bad; more of them stop the run.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS looks there for checksums of downloads, with a package that it does not require

    def __init__(self, *, splits: Mapping[str, Source], max_bad_fraction: float, data_dir: Path) -> None:
        self.report = PreparationReport()
        self._splits = splits
        self._bad_records = BadRecords(max_bad_fraction, sum(len(source) for source in splits.values()))
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=features(), description=type(self).__doc__)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(name, source) for name, source in self._splits.items()}

    def _generate_examples(self, split: str, source: Source) -> Iterator[tuple[str, dict]]:
        before, problem = self.report.images, None
        self.report.problems += getattr(source, "problems", ())
        for index in ProgressBar(range(len(source)), split, unit="image", smoothing=0.1):
            try:
                example = source[index]
                record = to_record(example)
            except BadRecord as error:
                self.report.problems.append(error)
                self._bad_records.count(error)
                problem = error
                continue
            self._bad_records.count(None)
            self.report.mask_problems += example.left_out
            self.report.images += 1
            self.report.masks += len(record["masks"])
            yield f"{index:012d}", record
        if self.report.images == before:  # TFDS writes no split without records
            raise UserError(f"no record of split {split} can be used; the last one: {problem}")


class SamCoco(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares images and the instances of COCO-format files."""


class SamLabels(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares images and the regions of their label maps."""


class SamMasks(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares images and their binary masks."""


class SamNamed(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares the named training sets of this project."""


class SamSa1b(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Prepares SA-1B, or images with JSON files like it."""

    def __init__(self, *, shards: Sequence[Path], data_dir: Path) -> None:
        self._shards = shards
        super().__init__(splits={}, max_bad_fraction=1.0, data_dir=data_dir)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Takes over shards that `sam_jax.data.shards` has written: TFDS's own Beam writer would send every image
        through a global sort, which Grain's shuffle makes needless and which does not fit one machine.
        """
        import array_record.python.array_record_module as array_record

        template = self._get_filename_template(split_name="train")
        lengths, size = [], 0
        for number, shard in enumerate(self._shards):
            reader = array_record.ArrayRecordReader(str(shard))
            lengths.append(reader.num_records())
            reader.close()
            size += shard.stat().st_size
            target = Path(template.sharded_filepath(shard_index=number, num_shards=len(self._shards)))
            shard.rename(target)
        self.info.set_splits(
            tfds.core.splits.SplitDict(
                [tfds.core.SplitInfo(name="train", shard_lengths=lengths, num_bytes=size, filename_template=template)]
            )
        )


BUILDERS: Mapping[str, type[SourceBuilder]] = {
    "coco": SamCoco,
    "labels": SamLabels,
    "masks": SamMasks,
    "named": SamNamed,
    "sa1b": SamSa1b,
}
