"""What requests hold, and its bounds. Everything that is not as described here is refused with 422."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sam_jax.errors import UserError

MAX_POINTS = 200  # of one mask
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
    model_config = ConfigDict(extra="forbid", strict=False)


class Click(Message):
    """A click in pixels of the image, upright."""

    x: Coordinate
    y: Coordinate
    label: Literal[0, 1] = Field(description="1 foreground, 0 background")


class Previous(Message):
    """A mask of an earlier answer to go on from: its logits are fed back to the model."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    mask: int = Field(ge=0, le=3, description="0 the single one, 1 to 3 the three")


class PredictRequest(Message):
    """What a mask is asked for with: clicks, a box, or both."""

    points: list[Click] = Field(default=[], max_length=MAX_POINTS)
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        default=None, description="x0, y0, x1, y1"
    )
    previous: Previous | None = None


class Segmentation(Message):
    """A mask as COCO's compressed run lengths."""

    size: tuple[Side, Side] = Field(description="height, width")
    counts: str = Field(max_length=MAX_COUNTS)


class CandidateMessage(Message):
    segmentation: Segmentation
    area: int
    predicted_iou: float
    stability_score: float


class PredictAnswer(Message):
    """All four masks: the single one, for prompts that leave no doubt, and the three."""

    id: str
    masks: list[CandidateMessage]
    best: int = Field(description="of the three after one click or box, else the single one")


class PointPrompt(Click):
    type: Literal["point"]


class BoxPrompt(Message):
    type: Literal["box"]
    x0: Coordinate
    y0: Coordinate
    x1: Coordinate
    y1: Coordinate


class BrushPrompt(Message):
    """A stroke by hand."""

    type: Literal["brush"]
    label: Literal[0, 1] = Field(description="1 paints, 0 erases")
    size: float = Field(gt=0, le=10_000, allow_inf_nan=False, description="diameter, pixels")
    path: list[tuple[Coordinate, Coordinate]] = Field(min_length=1, max_length=4096)


AnyPrompt = Annotated[PointPrompt | BoxPrompt | BrushPrompt, Field(discriminator="type")]


class SaveRequest(Message):
    """A mask to be kept. Saved again under the same id, it replaces what was there."""

    segmentation: Segmentation
    state: Literal["accepted", "edited", "rejected"] = Field(
        default="accepted", description="edited and rejected are for masks that the model proposed"
    )
    name: Name | None = None
    rank: int = Field(default=0, ge=0, le=1_000_000, description="0 the most prominent")
    prompts: list[AnyPrompt] = Field(default=[], max_length=MAX_POINTS + MAX_STROKES)
    predicted_iou: Score | None = None
    stability_score: Score | None = None
    seconds: Seconds = Field(default=0.0, description="of work on this mask, all in all")


class FinishRequest(Message):
    outcome: Literal["done", "skipped"] = "done"
    seconds: Seconds = 0.0
