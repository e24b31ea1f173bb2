"""The records that the store holds, and their validation: images, and masks with how they came to be."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, get_args

from sam_jax.errors import UserError
from sam_jax.ops.rle import Rle, counts_from_rle, rle_area, sa1b_bbox
from sam_jax.types import Record

Stage = Literal["assisted-manual", "semi-automatic", "automatic"]
Split = Literal["train", "held_out"]
Origin = Literal["manual", "prefilled", "automatic"]
State = Literal["proposed", "accepted", "edited", "rejected"]
Outcome = Literal["done", "skipped"]

STAGES: tuple[Stage, ...] = get_args(Stage)
KEPT: tuple[State, ...] = ("accepted", "edited")  # states of masks that are exported and trained on
MAX_TEXT = 200  # characters of a name
MAX_CLASSES = 200
MAX_PROMPTS = 1_000_000  # characters of a mask's prompts as JSON

Prompt = dict[str, Any]
"""A prompt as JSON. `type` is point (x, y, label), box (x0, y0, x1, y1) or brush (label); label 1 is the object, 0 the
background. Coordinates are pixels of the original frame; other keys are kept.
"""


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a project."""

    id: int
    root: Path  # absolute path of the folder of images
    name: str  # path relative to the root, with /
    width: int  # pixels of the upright image; 0 until it was opened
    height: int
    split: Split

    @property
    def path(self) -> Path:
        """Path of the image's file."""
        return self.root / self.name


class WorkedImage(NamedTuple):
    """An image on which an annotator works or has worked."""

    id: int
    name: str
    state: Literal["open", "done", "skipped"]


@dataclasses.dataclass(frozen=True)
class MaskRecord:
    """A mask and how it came to be.

    Raises:
        UserError: a field has an invalid value; the message names it.
    """

    id: str  # chosen by the client, such as uuid4().hex; saving under the same id changes the mask
    picture_id: int
    annotator: str
    segmentation: Rle  # original frame
    origin: Origin = "manual"
    state: State = "accepted"  # a person's masks are accepted, a model's are proposed until a person has judged them
    name: str | None = None  # what the object is called, free text
    rank: int = 0  # 0 for the most prominent object of the image, then 1, ...
    prompts: list[Prompt] = dataclasses.field(default_factory=list)
    model: str = ""  # model version that drew the mask
    predicted_iou: float | None = None
    stability_score: float | None = None
    seconds: float = 0.0  # time that the annotator spent on the mask

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", self.id):
            raise UserError(f"expected an id of 1 to 64 letters, digits, _ or -, got {self.id!r}")
        _check_int("picture_id", self.picture_id)
        _check_int("rank", self.rank)
        check_annotator(self.annotator)
        check_choice("origin", self.origin, Origin)
        check_choice("state", self.state, State)
        if self.origin == "manual" and self.state != "accepted":
            raise UserError(f"expected a manual mask to be accepted, got {self.state}; what is not wanted is deleted")
        if self.name is not None and not (isinstance(self.name, str) and len(self.name) <= MAX_TEXT):
            raise UserError(f"expected a name of at most {MAX_TEXT} characters or none, got {str(self.name)[:80]!r}")
        if not isinstance(self.model, str) or len(self.model) > 4 * MAX_TEXT:
            raise UserError(f"expected the name of a model, got {str(self.model)[:80]!r}")
        for field in ("predicted_iou", "stability_score"):
            if getattr(self, field) is not None:
                _check_number(field, getattr(self, field))
        check_seconds(self.seconds)
        if not isinstance(self.segmentation, dict) or set(self.segmentation) != {"size", "counts"}:
            raise UserError(f"expected COCO run lengths with size and counts, got {str(self.segmentation)[:80]}")
        if not isinstance(self.segmentation["counts"], str):
            raise UserError("expected compressed run lengths, counts as a string")
        if not counts_from_rle(self.segmentation)[1::2].sum():
            raise UserError("expected a mask of at least one pixel, got an empty one")
        _check_prompts(self.prompts)


def bare_record(segmentation: Rle) -> Record:
    """Returns a record in the format of everything mode for a mask of which nothing else is known."""
    height, width = segmentation["size"]
    return {
        "segmentation": segmentation,
        "area": rle_area(segmentation),
        "bbox": sa1b_bbox(segmentation),
        "predicted_iou": None,
        "point_coords": [],
        "stability_score": None,
        "crop_box": [0.0, 0.0, float(width), float(height)],
    }


def to_record(mask: MaskRecord) -> Record:
    """Returns a mask in the format of everything mode, with its name and its first positive click as the point."""
    clicks = [[prompt["x"], prompt["y"]] for prompt in mask.prompts if prompt["type"] == "point" and prompt["label"]]
    return bare_record(mask.segmentation) | {
        "predicted_iou": mask.predicted_iou,
        "point_coords": clicks[:1],
        "stability_score": mask.stability_score,
        "name": mask.name,
    }


def check_annotator(annotator: str) -> None:
    """Raises a UserError if an annotator's name is empty or too long."""
    if not isinstance(annotator, str) or not annotator.strip() or len(annotator) > MAX_TEXT:
        raise UserError(f"expected an annotator's name of 1 to {MAX_TEXT} characters, got {str(annotator)[:80]!r}")


def check_classes(names: Any) -> list[str]:
    """Returns a list of classes without white space at their ends; raises a UserError if it is none."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"expected a list of names of classes, got {str(names)[:80]}")
    classes = [name.strip() for name in names]
    if len(classes) > MAX_CLASSES:
        raise UserError(f"expected at most {MAX_CLASSES} classes, got {len(classes)}")
    for name in classes:
        if not name.isprintable() or not 1 <= len(name) <= MAX_TEXT:
            raise UserError(f"expected classes with names of 1 to {MAX_TEXT} printable characters, got {name[:80]!r}")
        if classes.count(name) > 1:
            raise UserError(f"expected each class once, got {name!r} {classes.count(name)} times")
    return classes


def check_choice(field: str, value: Any, choices: Any) -> None:
    """Raises a UserError that names the field if the value is none of a Literal's choices."""
    if value not in get_args(choices):
        raise UserError(f"expected {field} to be one of {', '.join(get_args(choices))}, got {value!r}")


def check_seconds(seconds: float) -> None:
    """Raises a UserError if a duration is negative or not finite."""
    _check_number("seconds", seconds)
    if seconds < 0:
        raise UserError(f"expected seconds of at least 0, got {seconds}")


def check_name(name: str) -> str:
    """Returns an image's path relative to its root, normalised.

    Raises:
        UserError: the path is absolute, or leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise UserError(f"expected a path below the folder of the images, joined by /, got {name!r}")
    return str(path)


def _check_int(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise UserError(f"expected {field} to be a whole number of at least 0, got {value!r}")


def _check_number(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"expected {field} to be a finite number, got {value!r}")


PROMPT_FIELDS = {"point": ("x", "y"), "box": ("x0", "y0", "x1", "y1"), "brush": ()}


def _check_prompts(prompts: Any) -> None:
    if not isinstance(prompts, list):
        raise UserError(f"expected a list of prompts, got {str(prompts)[:80]}")
    for prompt in prompts:
        kind = prompt.get("type") if isinstance(prompt, dict) else None
        if kind not in PROMPT_FIELDS:
            raise UserError(f"expected prompts with a type of {', '.join(PROMPT_FIELDS)}, got {str(prompt)[:80]}")
        for field in PROMPT_FIELDS[kind]:
            _check_number(f"{field} of a {kind}", prompt.get(field))
        if kind != "box" and (isinstance(prompt.get("label"), bool) or prompt.get("label") not in (0, 1)):
            raise UserError(f"expected a {kind} with label 1 (object) or 0 (background), got {prompt.get('label')!r}")
    try:
        length = len(json.dumps(prompts, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"expected prompts that JSON can hold: {error}") from error
    if length > MAX_PROMPTS:
        raise UserError(f"expected prompts of at most {MAX_PROMPTS} characters of JSON, got {length}")
