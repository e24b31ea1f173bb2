"""What the store holds, and what is refused: images, and masks with how they came to be."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

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
MAX_PROMPTS = 1_000_000  # characters of a mask's prompts as JSON

Prompt = dict[str, Any]
"""`type` is point (x, y, label), box (x0, y0, x1, y1) or brush (label); label 1 is the object, 0 the background.
Pixels of the original frame; other keys are kept.
"""


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a project."""

    id: int
    root: Path  # folder, absolute
    name: str  # path below the root, with /
    width: int  # pixels, upright; 0 until known
    height: int
    split: Split

    @property
    def path(self) -> Path:
        return self.root / self.name


@dataclasses.dataclass(frozen=True)
class MaskRecord:
    """A mask and how it came to be.

    Raises:
        ValueError: a field that can't be; says which.
    """

    id: str  # chosen by the client, such as uuid4().hex: what is saved again with it is the same mask
    picture_id: int
    annotator: str
    segmentation: Rle  # original frame
    origin: Origin = "manual"
    state: State = "accepted"  # what a person draws is accepted, what a model draws is proposed until it is judged
    name: str | None = None  # of the object, free text
    rank: int = 0  # place in the order of prominence, from 0
    prompts: list[Prompt] = dataclasses.field(default_factory=list)
    model: str = ""  # version that drew it
    predicted_iou: float | None = None
    stability_score: float | None = None
    seconds: float = 0.0  # that the annotator spent on it

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
    """Returns a mask of which nothing else is known, as everything mode gives its own."""
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
    """Returns a mask as everything mode gives its own, with the object's name; its point is the first click on it."""
    clicks = [[prompt["x"], prompt["y"]] for prompt in mask.prompts if prompt["type"] == "point" and prompt["label"]]
    return bare_record(mask.segmentation) | {
        "predicted_iou": mask.predicted_iou,
        "point_coords": clicks[:1],
        "stability_score": mask.stability_score,
        "name": mask.name,
    }


def check_annotator(annotator: str) -> None:
    if not isinstance(annotator, str) or not annotator.strip() or len(annotator) > MAX_TEXT:
        raise UserError(f"expected an annotator's name of 1 to {MAX_TEXT} characters, got {str(annotator)[:80]!r}")


def check_choice(field: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise UserError(f"expected {field} to be one of {', '.join(get_args(choices))}, got {value!r}")


def check_seconds(seconds: float) -> None:
    _check_number("seconds", seconds)
    if seconds < 0:
        raise UserError(f"expected seconds of at least 0, got {seconds}")


def check_name(name: str) -> str:
    """An image's path below its root.

    Raises:
        ValueError: absolute, or leads out of the folder.
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
