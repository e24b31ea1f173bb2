"""The model for Label Studio: the routes of its ML backends, under /label-studio.

In Label Studio: Settings, Model, connect http://HOST:PORT/label-studio, with the token, if there is one, as password of
basic authentication and any user name; switch interactive preannotations on. A labelling setup that shows its tools:

    <View>
      <Image name="image" value="$image" zoom="true"/>
      <BrushLabels name="mask" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
      <KeyPointLabels name="point" toName="image" smart="true" smartOnly="true"><Label value="Cat"/></KeyPointLabels>
      <RectangleLabels name="box" toName="image" smart="true" smartOnly="true"><Label value="Cat"/></RectangleLabels>
    </View>

There: Auto-Annotation on, the last tool, a label of the points or boxes, and a click. Further ones before the mask is
accepted refine it, each after choosing the label again; with Alt they are of the background.
Label Studio from 1.23 asks no backend at an address of this machine or a private network, unless it is started
with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.

Images are those of the project, which Label Studio has as local files (/data/local-files/?d=folder/picture.jpg) or
lie in its folder of uploads (media/upload); with --label-studio the rest is fetched, see `label_studio_files`.
Predictions that are asked for without a click are the masks that the project has of an image.
"""

from __future__ import annotations

import secrets
import sys
from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, ValidationError

from sam_jax.app.brush_rle import encode_brush
from sam_jax.app.label_studio_files import LabelStudio, file_of, find_image
from sam_jax.app.messages import MAX_POINTS
from sam_jax.app.session import Answer, ModelSession
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.ops.rle import Rle, decode_rle
from sam_jax.prompting.prompts import Prompt

MAX_TASKS = 10_000  # Label Studio asks for all that are chosen at once
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Labels = Annotated[list[str], Field(max_length=16)]


class Value(BaseModel):
    """Of a region, in percent of the image."""

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

    tasks: list[Task] = Field(default=[], max_length=MAX_TASKS)
    label_config: str = Field(default="", max_length=100_000)
    params: Parameters = Parameters()


class Event(BaseModel):
    """What happened in Label Studio."""

    action: str = Field(default="", max_length=64)


class Setup(NamedTuple):
    """Of a labelling setup, the first BrushLabels."""

    from_name: str  # its name
    to_name: str  # of its image
    field: str  # of a task, that has the image's address
    labels: frozenset[str]  # none if every task brings its own


def label_studio_routes(
    store: Store, session: ModelSession, model_version: str, *, max_pixels: int, source: LabelStudio | None = None
) -> APIRouter:
    """The routes, to be included under a prefix.

    Args:
        max_pixels: larger images are not fetched.
        source: where images are fetched from that the project does not have; None: nowhere.
    """
    router = APIRouter()

    @router.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "UP", "model_class": "sam_jax"}

    @router.post("/setup")
    def setup() -> dict[str, Any]:
        return {"model_version": model_version}

    @router.get("/versions")
    def versions() -> dict[str, Any]:
        return {"versions": [model_version]}

    @router.post("/webhook")
    def webhook(event: Event) -> dict[str, Any]:
        """Label Studio tells every backend all that happens, and asks for training here."""
        if event.action == "START_TRAINING":
            raise _refused("models are trained by sam-jax engine train, from the masks of the project")
        return {}

    @router.post("/predict")
    async def predict(request: BackendRequest) -> dict[str, Any]:
        regions = request.params.context.result if request.params.context else []
        try:
            names = _read_setup(request.label_config)
            if regions and request.tasks:
                results = [to_prediction([await clicked(request.tasks[0], regions, names)])]
            else:
                results = await run_in_threadpool(kept, request.tasks, names)
        except UserError as error:
            raise _refused(str(error)) from error
        return {"results": results, "model_version": model_version}

    async def clicked(task: Task, regions: list[Region], names: Setup) -> dict[str, Any]:
        stored = await run_in_threadpool(get_image, task, names.field)
        embedded = await session.embed(stored)
        prompt, label = _read_regions(regions, embedded.size)
        prompt.check(embedded.size)
        answer = await session.predict(stored, prompt)
        return await run_in_threadpool(_best, answer, len(regions) == 1, names, label)

    def kept(tasks: list[Task], names: Setup) -> list[Any]:
        """Of each task a prediction, or a list of none: one without masks would be kept, and not asked for again."""
        masks = [_kept(store, task, names) for task in tasks]
        return [to_prediction(regions) if regions else [] for regions in masks]

    def to_prediction(regions: list[dict[str, Any]]) -> dict[str, Any]:
        scores = [region["score"] for region in regions if region["score"] is not None]
        score = sum(scores) / len(scores) if scores else None
        return {"result": regions, "score": score, "model_version": model_version}

    def get_image(task: Task, field: str) -> int:
        file = file_of(task.data.get(field))
        found = find_image(store, file)
        if found is not None:
            return found
        if source is None:
            raise UserError(
                f"expected an image of the project, got {file[:80]!r}; restart sam-jax annotate if it is new in its "
                "folder, or fetch what lies in Label Studio with --label-studio"
            )
        return source.add_image(store, file, max_pixels)

    return router


def _refused(reason: str) -> HTTPException:
    """Label Studio shows the status alone, so the reason is told here, too."""
    print(f"sam-jax annotate: Label Studio: {reason}", file=sys.stderr)
    return HTTPException(422, reason)


def _read_setup(config: str) -> Setup:
    if "<!" in config.replace("<!--", ""):
        raise UserError("expected a labelling setup without document type and entities")
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise UserError(f"expected a labelling setup in XML: {error}") from error
    brush = next(root.iter("BrushLabels"), None)
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    if brush is None or not brush.get("name") or brush.get("toName") not in images:
        raise UserError("expected a labelling setup with BrushLabels on an Image")
    to_name = str(brush.get("toName"))
    labels = frozenset(label.get("alias") or label.get("value") or "" for label in brush.iter("Label"))
    return Setup(str(brush.get("name")), to_name, images[to_name].removeprefix("$"), labels)


def _kept(store: Store, task: Task, names: Setup) -> list[dict[str, Any]]:
    """The masks that the project has of a task's image, proposed ones too; none if it does not have the image."""
    try:
        stored = find_image(store, file_of(task.data.get(names.field)))
    except UserError:
        stored = None
    masks = [] if stored is None else [mask for mask in store.masks(stored) if mask.state != "rejected"]
    return [_region(mask.segmentation, mask.predicted_iou, names, mask.name or "") for mask in masks]


def _read_regions(regions: list[Region], size: tuple[int, int]) -> tuple[Prompt, str]:
    """Clicks and the last box of what was drawn, in pixels, and the label that was chosen."""
    H, W = size
    points, labels, box, label = [], [], None, ""
    for region in regions:
        if (region.original_height, region.original_width) != size or region.image_rotation:
            raise UserError(f"expected regions of an image of {W} x {H} pixels that is not rotated")
        if region.type not in ("keypointlabels", "rectanglelabels"):
            continue
        try:
            value = Value.model_validate(region.value)
        except ValidationError as error:
            raise UserError(str(error)) from error
        x, y = value.x * W / 100, value.y * H / 100
        if region.type == "keypointlabels":
            points.append([min(x, W - 1), min(y, H - 1)])
            labels.append(int(region.is_positive))
        else:
            box = np.array([x, y, x + value.width * W / 100, y + value.height * H / 100])
        label = next(iter(value.keypointlabels + value.rectanglelabels), label)
    if not points and box is None:
        raise UserError("expected a key point or a rectangle")
    return Prompt(np.array(points) if points else None, np.array(labels) if points else None, box), label


def _best(answer: Answer, ambiguous: bool, names: Setup, label: str) -> dict[str, Any]:
    candidates = answer.candidates[1:] if ambiguous else answer.candidates[:1]
    best = max(candidates, key=lambda candidate: candidate.predicted_iou)
    return _region(best.segmentation, best.predicted_iou, names, label)


def _region(segmentation: Rle, score: float | None, names: Setup, label: str) -> dict[str, Any]:
    """A mask as Label Studio's brush."""
    height, width = segmentation["size"]
    return {
        "id": secrets.token_hex(5),
        "from_name": names.from_name,
        "to_name": names.to_name,
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": None if score is None else round(score, 4),
        "readonly": False,
        "value": {
            "format": "rle",
            "rle": encode_brush(decode_rle(segmentation)),
            "brushlabels": [label] if label and label in (names.labels or {label}) else [],
        },
    }
