"""Reads what `sam-jax prepare` has written: ArrayRecord files of TFDS, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam_jax.data.examples import Example
from sam_jax.errors import BadRecord, MissingPackage, UserError


class PreparedSource:
    """Gives the examples of one split of a prepared data set.

    Args:
        folder: folder with dataset_info.json.
        split: name of the split, train or validation.

    Raises:
        MissingPackage: tensorflow_datasets is not installed.
        UserError: there is no such split, or its records are of another kind.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self._data = _open(folder, split)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        try:
            record = self._data[index]
            h, w = record["size"].tolist()
            masks = tuple({"size": [h, w], "counts": _text(counts)} for counts in record["masks"]["counts"])
            dataset, name = _text(record["dataset"]), _text(record["id"])
            encoded = bytes(record["image"])
        except Exception as error:  # of array_record or TFDS, or of other fields than ours
            raise BadRecord("record cannot be read", f"{self.folder}[{index}]", error) from error
        return Example(self.folder, (h, w), masks, dataset, encoded=encoded, member=name)


def find_prepared(folder: Path) -> list[Path]:
    """Finds folders with dataset_info.json: this one, or those of data sets and versions below."""
    return sorted(
        path.parent
        for pattern in ("", "*/", "*/*/", "*/*/*/")
        for path in folder.glob(f"{pattern}dataset_info.json")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def splits_of(folder: Path) -> list[str]:
    return sorted(_builder(folder).info.splits)


def _open(folder: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    builder = _builder(folder)
    if split not in builder.info.splits:
        raise UserError(f"expected a split {split!r} in {folder}, it has {sorted(builder.info.splits)}")
    wanted = {"image", "id", "dataset", "size", "masks"}
    if not wanted <= set(builder.info.features):
        raise UserError(
            f"expected records with {sorted(wanted)} in {folder}, they have {sorted(builder.info.features)}; "
            "`sam-jax prepare` writes such records"
        )
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _builder(folder: Path) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise MissingPackage("prepared data is read with tensorflow_datasets; pip install 'sam_jax[train]'") from error
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of the JSON files there
        raise UserError(f"expected a prepared data set in {folder}, cannot read it as one: {error}") from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
