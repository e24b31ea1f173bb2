"""The model for Label Studio: the routes of its ML backends, under /label-studio.

In Label Studio: Settings, Model, connect http://HOST:PORT/label-studio, with the token, if there is one, as password of
basic authentication and any user name; switch interactive preannotations on. The labelling setup has BrushLabels, and
KeyPointLabels or RectangleLabels (or both) with smart="true". Tasks name their pictures by Label Studio's local files
storage: /data/local-files/?d=folder/picture.jpg. Only pictures of the project are looked at; no address is fetched.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from sam_jax.app.brush_rle import encode_brush
from sam_jax.app.messages import MAX_POINTS
from sam_jax.app.session import Answer, ModelSession
from sam_jax.engine.records import Picture
from sam_jax.engine.store import Store
from sam_jax.ops.prompts import Prompt
from sam_jax.ops.rle import decode_rle

LOCAL_FILES = "/data/local-files/"
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Labels = Annotated[list[str], Field(max_length=16)]


class Value(BaseModel):
    """Of a region, in percent of the picture."""

    x: Percent
    y: Percent
    width: Percent = 0.0
    height: Percent = 0.0
    keypointlabels: Labels = []
    rectanglelabels: Labels = []


class Region(BaseModel):
    type: str = Field(max_length=64)
    original_width: int = Field(ge=1, le=1_000_000)
    original_height: int = Field(ge=1, le=1_000_000)
    image_rotation: float = 0
    is_positive: bool = True
    value: dict[str, Any]


class Context(BaseModel):
    result: list[Region] = Field(default=[], max_length=MAX_POINTS)


class Parameters(BaseModel):
    context: Context | None = None


class Task(BaseModel):
    data: dict[str, Any] = {}


class BackendRequest(BaseModel):
    """What Label Studio sends; it sends more, which is not looked at."""

    tasks: list[Task] = Field(default=[], max_length=64)
    label_config: str = Field(default="", max_length=100_000)
    params: Parameters = Parameters()


def label_studio_routes(store: Store, session: ModelSession, model_version: str) -> APIRouter:
    """The routes, to be included under a prefix."""
    router = APIRouter()

    @router.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "UP", "model_class": "sam_jax"}

    @router.post("/setup")
    def setup() -> dict[str, Any]:
        return {"model_version": model_version}

    @router.post("/predict")
    async def predict(request: BackendRequest) -> dict[str, Any]:
        regions = request.params.context.result if request.params.context else []
        if not regions or not request.tasks:  # asked ahead of all clicks: nothing can be said yet
            return {"results": [], "model_version": model_version}
        try:
            names = _read_setup(request.label_config)
            picture = await run_in_threadpool(_find_picture, store, request.tasks[0], names["value"])
            embedded = await session.embed(picture.id)
            prompt, label = _read_regions(regions, embedded.size)
            prompt.check(embedded.size)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        answer = await session.predict(picture.id, prompt)
        result = await run_in_threadpool(_to_result, answer, len(regions) == 1, embedded.size, names, label)
        prediction = {"result": [result], "score": result["score"], "model_version": model_version}
        return {"results": [prediction], "model_version": model_version}

    return router


def _read_setup(config: str) -> dict[str, str]:
    """Names of the first BrushLabels (from_name), of its picture (to_name), and the task's field of it (value)."""
    if "<!" in config.replace("<!--", ""):
        raise ValueError("expected a labelling setup without document type and entities")
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise ValueError(f"expected a labelling setup in XML: {error}") from error
    brush = next(root.iter("BrushLabels"), None)
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    if brush is None or not brush.get("name") or brush.get("toName") not in images:
        raise ValueError("expected a labelling setup with BrushLabels on an Image")
    to_name = str(brush.get("toName"))
    return {"from_name": str(brush.get("name")), "to_name": to_name, "value": images[to_name].removeprefix("$")}


def _find_picture(store: Store, task: Task, field: str) -> Picture:
    """The project's picture that a task names. Label Studio's root may lie above or below the project's folder."""
    address = task.data.get(field)
    if not isinstance(address, str) or not (parts := urlsplit(address)).path.endswith(LOCAL_FILES):
        raise ValueError(f"expected the task's {field} to be {LOCAL_FILES}?d=..., got {str(address)[:80]!r}")
    wanted = (parse_qs(parts.query).get("d") or [""])[0]
    ends = ("/" + wanted.lstrip("/")).split("/")
    names = ["/".join(ends[i:]) for i in range(1, len(ends))]
    for name in names:  # the longest end that is a name of the project
        found = [picture for picture in store.pictures() if picture.name == name]
        if len(found) == 1:
            return found[0]
    raise ValueError(f"expected a picture of the project, got {wanted[:80]!r}")


def _read_regions(regions: list[Region], size: tuple[int, int]) -> tuple[Prompt, str]:
    """Clicks and the last box of what was drawn, in pixels, and the label that was chosen."""
    H, W = size
    points, labels, box, label = [], [], None, ""
    for region in regions:
        if (region.original_height, region.original_width) != size or region.image_rotation:
            raise ValueError(f"expected regions of a picture of {W} x {H} pixels that is not rotated")
        if region.type not in ("keypointlabels", "rectanglelabels"):
            continue
        value = Value.model_validate(region.value)
        x, y = value.x * W / 100, value.y * H / 100
        if region.type == "keypointlabels":
            points.append([min(x, W - 1), min(y, H - 1)])
            labels.append(int(region.is_positive))
        else:
            box = np.array([x, y, x + value.width * W / 100, y + value.height * H / 100])
        label = next(iter(value.keypointlabels + value.rectanglelabels), label)
    if not points and box is None:
        raise ValueError("expected a key point or a rectangle")
    return Prompt(np.array(points) if points else None, np.array(labels) if points else None, box), label


def _to_result(
    answer: Answer, ambiguous: bool, size: tuple[int, int], names: dict[str, str], label: str
) -> dict[str, Any]:
    candidates = answer.candidates[1:] if ambiguous else answer.candidates[:1]
    best = max(candidates, key=lambda candidate: candidate.predicted_iou)
    return {
        "id": secrets.token_hex(5),
        "from_name": names["from_name"],
        "to_name": names["to_name"],
        "type": "brushlabels",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "score": round(best.predicted_iou, 4),
        "readonly": False,
        "value": {
            "format": "rle",
            "rle": encode_brush(decode_rle(best.segmentation)),
            "brushlabels": [label] if label else [],
        },
    }
