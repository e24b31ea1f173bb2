"""The routes of a Label Studio ML backend, under /label-studio: the same model serves Label Studio.

In Label Studio, connect http://HOST:PORT/label-studio under Settings, Model, with any user name and the token, if there
is one, as password of basic authentication; switch interactive preannotations on. A labelling setup with the tools:

    <View>
      <Image name="image" value="$image" zoom="true"/>
      <BrushLabels name="mask" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
      <KeyPointLabels name="point" toName="image" smart="true" smartOnly="true"><Label value="Cat"/></KeyPointLabels>
      <RectangleLabels name="box" toName="image" smart="true" smartOnly="true"><Label value="Cat"/></RectangleLabels>
    </View>

To annotate, switch Auto-Annotation on, choose the last tool and a label of the points or boxes, and click. Further
clicks before the mask is accepted refine it; choose the label again before each. Clicks with Alt are background.
Label Studio 1.23 and later does not connect to a backend on the same machine or in a private network unless it is
started with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.

The project contains the images, which Label Studio knows as local files (/data/local-files/?d=folder/image.jpg) or as
files of its upload folder (media/upload). With --label-studio other images are fetched, see `label_studio_files`.
Predictions that are requested without a click are the project's masks of an image.
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
from sam_jax.app.label_studio_files import LabelStudio, file_of, find_images
from sam_jax.app.messages import MAX_POINTS
from sam_jax.app.session import ModelSession, PredictedMasks
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.ops.rle import Rle, decode_rle
from sam_jax.prompting.prompts import Prompt

MAX_TASKS = 10_000  # Label Studio sends all selected tasks in one request
MAX_NUMBERS = 1 << 24  # of run lengths in an answer
Percent = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Extent = Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)]
Turn = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Labels = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=16)]


class RegionValue(BaseModel):
    """Position of a region in percent of the image's width and height, and its labels.

    Rectangles that are turned may have their corner outside the image.
    """

    x: Percent
    y: Percent
    width: Extent = 0.0
    height: Extent = 0.0
    rotation: Turn = 0.0  # degrees, clockwise, about the corner (x, y)
    keypointlabels: Labels = []
    rectanglelabels: Labels = []


class Region(BaseModel):
    """A region or answer of Label Studio: a key point, a rectangle, or another kind, which need not have a place."""

    type: str = Field(max_length=64)
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: Turn = 0
    is_positive: bool = True
    value: dict[str, Any]


class RegionContext(BaseModel):
    """The regions that were drawn since the last accepted mask."""

    result: list[Region] = Field(default=[], max_length=MAX_POINTS)


class PredictParameters(BaseModel):
    """Parameters of a prediction; `context` is there if it is interactive."""

    context: RegionContext | None = None


class Task(BaseModel):
    """A task of Label Studio; `data` holds the address of its image."""

    data: dict[str, Any] = {}


class BackendRequest(BaseModel):
    """A request by Label Studio, without the fields that are not used."""

    tasks: list[Task] = Field(default=[], max_length=MAX_TASKS)
    label_config: str = Field(default="", max_length=100_000)
    params: PredictParameters = PredictParameters()


class WebhookEvent(BaseModel):
    """An event in Label Studio."""

    action: str = Field(default="", max_length=64)


class LabellingSetup(NamedTuple):
    """The first BrushLabels of a labelling setup, and its image."""

    from_name: str  # name of the BrushLabels
    to_name: str  # name of the image
    field: str  # field of a task's data with the address of the image
    labels: frozenset[str]  # empty if every task has its own labels


def label_studio_routes(
    store: Store, session: ModelSession, model_version: str, *, max_pixels: int, source: LabelStudio | None = None
) -> APIRouter:
    """Returns the routes of the ML backend, to be included under a prefix.

    Args:
        store: the project's images and saved masks.
        session: the model.
        model_version: name of the model, which is part of every prediction.
        max_pixels: larger images are not fetched.
        source: the server from which images are fetched that the project does not have; None to fetch none.
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
    def webhook(event: WebhookEvent) -> dict[str, Any]:
        """Accepts Label Studio's events, which every backend receives, and refuses requests for training."""
        if event.action == "START_TRAINING":
            raise _refused("models are trained by sam-jax engine train, from the masks of the project")
        return {}

    @router.post("/predict")
    async def predict(request: BackendRequest) -> dict[str, Any]:
        regions = request.params.context.result if request.params.context else []
        try:
            names = _read_setup(request.label_config)
            if regions and request.tasks:
                results = [to_prediction([await predict_region(request.tasks[0], regions, names)])]
            else:
                results = await run_in_threadpool(saved_predictions, request.tasks, names)
        except UserError as error:
            raise _refused(str(error)) from error
        return {"results": results, "model_version": model_version}

    async def predict_region(task: Task, regions: list[Region], names: LabellingSetup) -> dict[str, Any]:
        stored = await run_in_threadpool(get_image, task, names.field)
        embedded = await session.embed(stored)
        prompt, label = _read_regions(regions, embedded.size)
        prompt.check(embedded.size)
        predicted = await session.predict(stored, prompt)
        single = (0 if prompt.points is None else len(prompt.points)) + (prompt.box is not None) == 1
        return await run_in_threadpool(_best_region, predicted, single, names, label)

    def saved_predictions(tasks: list[Task], names: LabellingSetup) -> list[Any]:
        """Returns a prediction of saved masks for each task, or an empty list where there are none.

        Label Studio would keep a prediction without masks, and not ask again. It does ask again for those that are left
        out once the answer is large.
        """
        known: dict[int, list[dict[str, Any]]] = {}
        results: list[Any] = []
        numbers = 0
        for image in find_images(store, [_file_or_none(task, names.field) for task in tasks]):
            regions: list[dict[str, Any]] = []
            if image is not None and numbers < MAX_NUMBERS:
                if image not in known:
                    known[image] = _saved_regions(store, image, names)
                regions = known[image]
                numbers += sum(len(region["value"]["rle"]) for region in regions)
            results.append(to_prediction(regions) if regions else [])
        return results

    def to_prediction(regions: list[dict[str, Any]]) -> dict[str, Any]:
        scores = [region["score"] for region in regions if region["score"] is not None]
        score = sum(scores) / len(scores) if scores else None
        return {"result": regions, "score": score, "model_version": model_version}

    def get_image(task: Task, field: str) -> int:
        file = file_of(task.data.get(field))
        (found,) = find_images(store, [file])
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
    """Returns a 422 error, and prints its reason, since Label Studio shows the status alone."""
    print(f"sam-jax annotate: Label Studio: {reason}", file=sys.stderr)
    return HTTPException(422, reason)


def _read_setup(config: str) -> LabellingSetup:
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
    return LabellingSetup(str(brush.get("name")), to_name, images[to_name].removeprefix("$"), labels)


def _file_or_none(task: Task, field: str) -> str | None:
    try:
        return file_of(task.data.get(field))
    except UserError:
        return None


def _saved_regions(store: Store, image: int, names: LabellingSetup) -> list[dict[str, Any]]:
    """Returns the saved and proposed masks of an image."""
    masks = [mask for mask in store.masks(image) if mask.state != "rejected"]
    return [_region(mask.segmentation, mask.predicted_iou, names, mask.name or "") for mask in masks]


def _read_regions(regions: list[Region], size: tuple[int, int]) -> tuple[Prompt, str]:
    """Returns a prompt of all clicks and the last box that were drawn, in pixels, and the label that was chosen.

    Regions of other kinds, such as masks that were accepted before or choices, are left alone.
    """
    H, W = size
    points, labels, box, label = [], [], None, ""
    for region in regions:
        if region.type not in ("keypointlabels", "rectanglelabels"):
            continue
        if (region.original_height, region.original_width) != size or region.image_rotation:
            raise UserError(f"expected regions of an image of {W} x {H} pixels that is not rotated")
        try:
            value = RegionValue.model_validate(region.value)
        except ValidationError as error:
            raise UserError(str(error)) from error
        x, y = value.x * W / 100, value.y * H / 100
        if region.type == "keypointlabels":
            if not (0 <= value.x <= 100 and 0 <= value.y <= 100):
                raise UserError(f"expected a key point in the image, got x {value.x} % and y {value.y} %")
            points.append([min(x, W - 1), min(y, H - 1)])
            labels.append(int(region.is_positive))
        else:
            box = _box_around(x, y, value.width * W / 100, value.height * H / 100, value.rotation, size)
        label = next(iter(value.keypointlabels + value.rectanglelabels), label)
    if not points and box is None:
        raise UserError("expected a key point or a rectangle")
    return Prompt(np.array(points) if points else None, np.array(labels) if points else None, box), label


def _box_around(x: float, y: float, width: float, height: float, rotation: float, size: tuple[int, int]) -> np.ndarray:
    """Returns the box around a rectangle that is turned about its corner (x, y), cut off at the image's edges.

    Args:
        rotation: degrees, clockwise.
        size: (H, W) of the image.
    """
    H, W = size
    cosine, sine = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    # Rounded, so that the box of a quarter turn does not reach into the next pixel.
    across = np.round(np.outer((0, width), (cosine, sine)), 6)
    down = np.round(np.outer((0, height), (-sine, cosine)), 6)
    corners = (np.array([x, y]) + across[:, None] + down).reshape(-1, 2).clip(0, (W, H))
    return np.concatenate([corners.min(0), corners.max(0)])


def _best_region(predicted: PredictedMasks, ambiguous: bool, names: LabellingSetup, label: str) -> dict[str, Any]:
    candidates = predicted.candidates[1:] if ambiguous else predicted.candidates[:1]
    best = max(candidates, key=lambda candidate: candidate.predicted_iou)
    return _region(best.segmentation, best.predicted_iou, names, label)


def _region(segmentation: Rle, score: float | None, names: LabellingSetup, label: str) -> dict[str, Any]:
    """Returns a mask as a brush region of Label Studio."""
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
