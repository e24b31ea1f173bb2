"""The contents of requests and responses, and their limits. Requests that violate them are refused with status 422."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sam_jax.engine.records import MAX_CLASSES
from sam_jax.errors import UserError

MAX_POINTS = 200  # clicks for one mask
MAX_STROKES = 500
MAX_COUNTS = 2_000_000  # characters of run lengths


def _printable(text: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise UserError("expected text without control characters")
    return text


Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=1_000_000)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
MASK_ID = r"^[A-Za-z0-9_\-]{1,64}$"


class Message(BaseModel):
    """Base class of requests and responses, which refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=False)


class Click(Message):
    """A click, in pixels of the upright image."""

    x: Coordinate
    y: Coordinate
    label: Literal[0, 1] = Field(description="1 foreground, 0 background")


class PreviousMask(Message):
    """A mask of an earlier response to refine: its logits are fed back to the model."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    mask: int = Field(ge=0, le=3, description="0 the single mask, 1 to 3 the three for ambiguous prompts")


class PredictRequest(Message):
    """The prompt for a mask: clicks, a box, or both."""

    points: list[Click] = Field(default=[], max_length=MAX_POINTS)
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        default=None, description="x0, y0, x1, y1"
    )
    previous: PreviousMask | None = None


class Segmentation(Message):
    """A mask as a compressed RLE of COCO."""

    size: tuple[Side, Side] = Field(description="height, width")
    counts: str = Field(max_length=MAX_COUNTS)


class CandidateMessage(Message):
    """One mask for a prompt."""

    segmentation: Segmentation
    area: int
    predicted_iou: float
    stability_score: float


class PredictResponse(Message):
    """All four masks for a prompt: the single mask for unambiguous prompts, then the three for ambiguous ones."""

    id: str
    masks: list[CandidateMessage]
    best: int = Field(description="index of the best mask: of the three after one click or box, else the single one")


class PointPrompt(Click):
    """A click that a saved mask was drawn with."""

    type: Literal["point"]


class BoxPrompt(Message):
    """A box that a saved mask was drawn with, in pixels."""

    type: Literal["box"]
    x0: Coordinate
    y0: Coordinate
    x1: Coordinate
    y1: Coordinate


class BrushPrompt(Message):
    """A brush stroke by which a mask was edited."""

    type: Literal["brush"]
    label: Literal[0, 1] = Field(description="1 paints, 0 erases")
    size: float = Field(gt=0, le=10_000, allow_inf_nan=False, description="diameter, pixels")
    path: list[tuple[Coordinate, Coordinate]] = Field(min_length=1, max_length=4096)


AnyPrompt = Annotated[PointPrompt | BoxPrompt | BrushPrompt, Field(discriminator="type")]


class SaveRequest(Message):
    """A mask to be saved. It replaces the mask that was saved under the same id."""

    segmentation: Segmentation
    state: Literal["accepted", "edited", "rejected"] = Field(
        default="accepted", description="edited and rejected are for masks that a model proposed"
    )
    name: Name | None = None
    rank: int = Field(default=0, ge=0, le=1_000_000, description="0 for the most prominent object")
    prompts: list[AnyPrompt] = Field(default=[], max_length=MAX_POINTS + MAX_STROKES)
    predicted_iou: Score | None = None
    stability_score: Score | None = None
    seconds: Seconds = Field(default=0.0, description="total time spent on this mask")


class ClassesRequest(Message):
    """The project's list of classes."""

    names: list[Name] = Field(max_length=MAX_CLASSES)


class FinishRequest(Message):
    """The outcome of the work on an image, and the time spent on it."""

    outcome: Literal["done", "skipped"] = "done"
    seconds: Seconds = 0.0
