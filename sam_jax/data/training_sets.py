"""Reads the named training and validation splits of the project's data folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sam_jax.data.coco import read_coco
from sam_jax.data.examples import Example, read_bsds500
from sam_jax.errors import MissingFile, UserError
from sam_jax.files import read_json


def _bsds500_train(root: Path) -> list[Example]:
    """Reads train and val, without the images that are GrabCut's test set."""
    held_out = read_json(root / "grabcut20" / "bsds_split_of_each_image.json")
    examples = read_bsds500(root / "bsds500", "train") + read_bsds500(root / "bsds500", "val")
    return [example for example in examples if example.path.stem not in held_out]


def _coco_train(root: Path) -> list[Example]:
    """Reads instances, and where an image has them panoptic segments (stuff), of train2017 alone."""
    folder = root / "coco_small"

    def is_train(image: dict) -> bool:
        return image.get("coco_split") == "train2017"

    return [
        example
        for file in ("instances.json", "panoptic_segments.json")
        for example in read_coco(folder / file, folder / "images", "coco_small", keep_image=is_train)
    ]


def _ccp(root: Path) -> list[Example]:
    """Reads clothing parts and the persons that wear them: wholes and parts."""
    return read_coco(root / "ccp" / "annotations.json", root / "ccp" / "images", "ccp")


TRAINING_SETS: dict[str, Callable[[Path], list[Example]]] = {
    "bsds500": _bsds500_train,
    "ccp": _ccp,
    "coco_small": _coco_train,
}


def read_training_sets(root: Path, names: tuple[str, ...]) -> list[Example]:
    """Reads the images of the named training sets.

    Raises:
        UserError: a name is unknown.
        MissingFile: there is no such folder.
    """
    unknown = sorted(set(names) - set(TRAINING_SETS))
    if unknown:
        raise UserError(f"unknown datasets {unknown}; known are {sorted(TRAINING_SETS)}")
    if not root.is_dir():
        raise MissingFile(f"expected the data folder at {root.resolve()}; say where it is with --data.path")
    return [example for name in names for example in TRAINING_SETS[name](root)]


def split_validation(examples: list[Example], every: int = 20) -> tuple[list[Example], list[Example]]:
    """Splits examples into (training, validation): every n-th image by name is held out, with all its masks."""
    names = sorted({example.name for example in examples})
    held_out = set(names[::every])
    return [e for e in examples if e.name not in held_out], [e for e in examples if e.name in held_out]
