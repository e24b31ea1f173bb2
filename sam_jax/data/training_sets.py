"""Reads the named training and validation splits of the project's data folder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
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


def _coco_format(root: Path, name: str) -> list[Example]:
    return read_coco(root / name / "annotations.json", root / name / "images", name)


# Sets in COCO format all of whose images are for training. `ccp` has clothing parts and the persons that wear them.
COCO_FORMAT = (
    "animals_train",
    "bottles_via",
    "camvid_part",
    "ccp",
    "cwfid_carrots",
    "food_plates",
    "human_seg290",
    "solar_panels",
    "surface_defects",
    "voc_sbd_part",
    "voc_sbd_part2",
    "weizmann_horses",
)
TRAINING_SETS: dict[str, Callable[[Path], list[Example]]] = {
    "bsds500": _bsds500_train,
    "coco_small": _coco_train,
    **{name: functools.partial(_coco_format, name=name) for name in COCO_FORMAT},
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


def repeat_by_weight(examples: list[Example], names: Sequence[str], weights: Sequence[float]) -> list[Example]:
    """Returns the examples with each as often as the weight of its set says, at least once in all.

    A weight of 1.5 gives every image once and every other one twice; below 1 images are left out in the same way.

    Args:
        names: of the sets.
        weights: one for each; none at all: every image once.

    Raises:
        UserError: there is not one weight for each set, or one is negative.
    """
    if not weights:
        return examples
    if len(weights) != len(names) or not all(0 <= weight < math.inf for weight in weights):
        raise UserError(f"expected a dataset_weight of at least 0 for each of {list(names)}, got {list(weights)}")
    by_name, repeated = dict(zip(names, weights, strict=True)), []
    for name, weight in by_name.items():
        own = [example for example in examples if example.dataset.startswith(name)]
        counts = [int((i + 1) * weight) - int(i * weight) for i in range(len(own))]
        repeated += [example for example, count in zip(own, counts, strict=True) for _ in range(count)]
    return repeated


def split_validation(examples: list[Example], every: int = 20) -> tuple[list[Example], list[Example]]:
    """Splits examples into (training, validation): every n-th image by name is held out, with all its masks."""
    names = sorted({example.name for example in examples})
    held_out = set(names[::every])
    return [e for e in examples if e.name not in held_out], [e for e in examples if e.name in held_out]
