"""The server of the annotation page: its routes, which `/api/openapi.json` describes in full.

    GET    /                                    the page; its files are under /assets
    GET    /api/state                           stage, model and progress
    POST   /api/next                            opens the annotator's next image, or the one that they left open
    GET    /api/back?before=P                   the image that they finished or skipped before another one
    GET    /api/strip                           their latest images and the next ones, with their states
    PUT    /api/classes                         replaces the project's list of classes, which /api/state has
    GET    /api/pictures/P                      an image's masks; /image its pixels, /thumbnail, /sa1b.json for download
    POST   /api/pictures/P/take                 opens a free image, or reopens one that they finished or skipped
    POST   /api/pictures/P/embed                responds once clicks on the image are fast
    POST   /api/pictures/P/predict              masks for clicks and a box
    PUT    /api/pictures/P/masks/M              saves a mask under an id that the client chooses, or replaces it
    DELETE /api/masks/M, POST .../restore       deletes and restores a mask; GET .../history lists its changes
    POST   /api/pictures/P/finish               ends the work on an image: done or skipped
    GET    /api/pictures/P/export/FORMAT        an image's masks in a format of `sam-jax everything`
    GET    /api/export/FORMAT                   all saved masks; /api/export.json is the COCO file

Requests name the annotator with ?annotator=NAME. Looking at an image changes nothing; who changes one that is not open
takes it first. Changes by a PUT, POST or DELETE that returns 200 are on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Path, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel

from sam_jax.app.exports import export_response, file_stem
from sam_jax.app.images import encode_jpeg, encode_thumbnail, read_stored
from sam_jax.app.label_studio import label_studio_routes
from sam_jax.app.label_studio_files import LabelStudio
from sam_jax.app.messages import (
    MASK_ID,
    CandidateMessage,
    ClassesRequest,
    FinishRequest,
    PredictRequest,
    PredictResponse,
    SaveRequest,
    Segmentation,
)
from sam_jax.app.session import ModelSession
from sam_jax.engine.records import MaskRecord, StoredImage
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.everything.formats import FORMATS
from sam_jax.model import Sam
from sam_jax.prompting.prompts import Prompt
from sam_jax.web.guard import Access, Guard
from sam_jax.web.serving import PERSON, add_error_handlers, serve_page

MAX_PIXELS = 50_000_000  # of an image: the page holds several arrays of this size
READERS = 4  # images that are decoded at the same time, limited to save memory
AHEAD = 2  # images of each annotator's queue that are embedded ahead
STRIP, STRIP_AHEAD = 60, 12  # images of the strip: of the annotator's own, and of the next ones
THUMBNAILS = 4096  # that are kept, a few kB each

Annotator = Annotated[str, Query(pattern=PERSON, description="who annotates")]
ImageId = Annotated[int, Path(ge=1, le=2**53)]
ImageNumber = Annotated[int, Query(ge=1, le=2**53)]
Format = Annotated[str, Path(json_schema_extra={"enum": list(FORMATS)}, pattern=f"^({'|'.join(FORMATS)})$")]
MaskId = Annotated[str, Path(pattern=MASK_ID)]


class ErrorMessage(BaseModel):
    """The response to a request that is refused."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorMessage} for status in (400, 401, 403, 404, 405, 409, 413, 415, 422)
}


def create_app(
    store: Store,
    model: Sam,
    access: Access,
    *,
    model_version: str,
    max_pixels: int = MAX_PIXELS,
    label_studio: LabelStudio | None = None,
) -> FastAPI:
    """Returns the ASGI application.

    Args:
        store: the project's images and masks.
        model: predicts the masks.
        access: who may send requests.
        model_version: name of the model, which is stored with every mask.
        max_pixels: larger images are refused.
        label_studio: the server from which images may be fetched.
    """

    readers = threading.BoundedSemaphore(READERS)

    def read(picture_id: int) -> np.ndarray:
        stored = store.image(picture_id)
        with readers:
            image = read_stored(stored, max_pixels)
        store.set_size(picture_id, image.shape[1], image.shape[0])
        return image

    session = ModelSession(model, read)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        session.start()
        yield
        await session.stop()

    app = FastAPI(
        title="sam-jax annotate",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its pages load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
        responses=REFUSALS,
    )
    app.add_middleware(Guard, access=access)
    add_error_handlers(app)
    serve_page(app, "annotate")

    def image_or_404(picture_id: int) -> StoredImage:
        try:
            return store.image(picture_id)
        except UserError as error:
            raise HTTPException(404, str(error)) from error

    async def check(picture_id: int) -> None:
        if picture_id not in session:  # clicks on an embedded image need no query
            await run_in_threadpool(image_or_404, picture_id)

    def describe(stored: StoredImage) -> dict[str, Any]:
        masks = [dataclasses.asdict(mask) for mask in store.masks(stored.id) if mask.state != "rejected"]
        picture = {field: getattr(stored, field) for field in ("id", "name", "width", "height")}
        picture["state"], picture["annotator"] = store.work_state(stored.id)
        return {"picture": picture, "masks": masks}

    @app.get("/api/state")
    def state(annotator: Annotator) -> dict[str, Any]:
        formats = {name: form.description for name, form in FORMATS.items()}
        return {
            "stage": store.stage,
            "model": model_version,
            "formats": formats,
            "classes": store.classes,
            "progress": _progress(store, annotator),
        }

    @app.put("/api/classes")
    def set_classes(annotator: Annotator, request: ClassesRequest) -> dict[str, Any]:
        store.set_classes(request.names)
        return {"classes": store.classes}

    @app.post("/api/next")
    async def next_image(annotator: Annotator) -> dict[str, Any]:
        stored, upcoming = await run_in_threadpool(lambda: (store.claim(annotator), store.upcoming(annotator, AHEAD)))
        session.embed_ahead([p.id for p in ([stored] if stored else []) + upcoming])
        content = {"picture": None, "masks": []} if stored is None else await run_in_threadpool(describe, stored)
        return content | {"upcoming": [p.id for p in upcoming]}

    @app.get("/api/back")
    def back(annotator: Annotator, before: ImageNumber | None = None) -> dict[str, Any]:
        left = [image.id for image in store.work_of(annotator) if image.state != "open" or image.id == before]
        earlier = left[: left.index(before)] if before in left else left
        return describe(store.image(earlier[-1])) if earlier else {"picture": None, "masks": []}

    @app.get("/api/strip")
    def strip(annotator: Annotator) -> dict[str, Any]:
        """Returns images by id, name and state: open, done or skipped, and then free ones."""
        mine = [image._asdict() for image in store.work_of(annotator)[-STRIP:]]
        upcoming = store.upcoming(annotator, STRIP_AHEAD)
        return {"pictures": mine + [{"id": p.id, "name": p.name, "state": "free"} for p in upcoming]}

    @app.get("/api/pictures/{picture_id}")
    def one_image(picture_id: ImageId) -> dict[str, Any]:
        return describe(image_or_404(picture_id))

    @app.get("/api/pictures/{picture_id}/image", response_class=Response)
    def image(picture_id: ImageId) -> Response:
        stored = image_or_404(picture_id)
        content = encode_jpeg(read(stored.id))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    @functools.lru_cache(maxsize=THUMBNAILS)
    def thumbnail_of(picture_id: int) -> bytes:
        return encode_thumbnail(read(picture_id))

    @app.get("/api/pictures/{picture_id}/thumbnail", response_class=Response)
    def thumbnail(picture_id: ImageId) -> Response:
        image_or_404(picture_id)
        headers = {"Cache-Control": "private, max-age=86400"}
        return Response(thumbnail_of(picture_id), media_type="image/jpeg", headers=headers)

    @app.post("/api/pictures/{picture_id}/take")
    def take(picture_id: ImageId, annotator: Annotator) -> dict[str, Any]:
        image_or_404(picture_id)
        store.take(picture_id, annotator)
        return {"taken": picture_id}

    @app.post("/api/pictures/{picture_id}/embed")
    async def embed_image(picture_id: ImageId) -> dict[str, Any]:
        await check(picture_id)
        await session.prepare(picture_id)
        return {"embedded": True}

    @app.post("/api/pictures/{picture_id}/predict")
    async def predict(picture_id: ImageId, request: PredictRequest) -> PredictResponse:
        prompts = len(request.points) + (request.box is not None)
        if not prompts:
            raise HTTPException(422, "expected a point, a box, or both")
        points = np.array([[p.x, p.y] for p in request.points]) if request.points else None
        labels = np.array([p.label for p in request.points]) if request.points else None
        prompt = Prompt(points, labels, None if request.box is None else np.array(request.box))
        await check(picture_id)
        embedded = await session.embed(picture_id)
        try:
            prompt.check(embedded.size)
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        previous = None if request.previous is None else (request.previous.id, request.previous.mask)
        predicted = await session.predict(picture_id, prompt, previous)
        scores = [candidate.predicted_iou for candidate in predicted.candidates]
        masks = [
            CandidateMessage(
                segmentation=Segmentation(**c.segmentation),
                area=c.area,
                predicted_iou=round(c.predicted_iou, 4),
                stability_score=round(c.stability_score, 4),
            )
            for c in predicted.candidates
        ]
        best = 1 + int(np.argmax(scores[1:])) if prompts == 1 else 0
        return PredictResponse(id=predicted.id, masks=masks, best=best)

    @app.put("/api/pictures/{picture_id}/masks/{mask_id}")
    def save(picture_id: ImageId, mask_id: MaskId, annotator: Annotator, request: SaveRequest) -> dict[str, Any]:
        if not image_or_404(picture_id).width:
            read(picture_id)
        before = next((mask for mask in store.masks(picture_id) if mask.id == mask_id), None)
        content = request.model_dump(mode="json")
        unchanged = before is not None and before.segmentation == content["segmentation"]
        record = MaskRecord(
            id=mask_id,
            picture_id=picture_id,
            annotator=annotator,
            origin=before.origin if before else "manual",
            model=before.model if before and unchanged else model_version,
            **content,
        )
        return dataclasses.asdict(store.save_mask(record))

    @app.delete("/api/masks/{mask_id}")
    def delete(mask_id: MaskId, annotator: Annotator) -> dict[str, Any]:
        store.delete_mask(mask_id, annotator)
        return {"deleted": mask_id}

    @app.post("/api/masks/{mask_id}/restore")
    def restore(mask_id: MaskId, annotator: Annotator) -> dict[str, Any]:
        return dataclasses.asdict(store.restore_mask(mask_id, annotator))

    @app.get("/api/masks/{mask_id}/history")
    def history(mask_id: MaskId) -> list[dict[str, Any]]:
        return store.history(mask_id)

    @app.post("/api/pictures/{picture_id}/finish")
    def finish(picture_id: ImageId, annotator: Annotator, request: FinishRequest) -> dict[str, Any]:
        image_or_404(picture_id)
        store.finish(picture_id, annotator, request.outcome, request.seconds)
        return {"outcome": request.outcome}

    def read_for_export(stored: StoredImage) -> np.ndarray:
        return read_stored(stored, max_pixels)

    @app.get("/api/pictures/{picture_id}/export/{format}", response_class=FileResponse)
    def export_image(picture_id: ImageId, format: Format) -> FileResponse:
        stored = image_or_404(picture_id)
        return export_response(store, [stored], format, file_stem(stored), read_for_export)

    @app.get("/api/export/{format}", response_class=FileResponse)
    def export_all(format: Format) -> FileResponse:
        name = "instances" if format == "coco" else f"masks_{format}"
        return export_response(store, None, format, name, read_for_export)

    @app.get("/api/pictures/{picture_id}/sa1b.json", response_class=FileResponse)
    def export_image_as_sa1b(picture_id: ImageId) -> FileResponse:
        return export_image(picture_id, "sa1b")

    @app.get("/api/export.json", response_class=FileResponse)
    def export_all_as_coco() -> FileResponse:
        return export_all("coco")

    routes = label_studio_routes(store, session, model_version, max_pixels=max_pixels, source=label_studio)
    app.include_router(routes, prefix="/label-studio")
    return app


def _progress(store: Store, annotator: str) -> dict[str, int]:
    """Returns the number of images: all, those that are done, and those that this annotator has done."""
    (row,) = store.rows(
        "SELECT count(*) AS pictures, coalesce(sum(state = 'done'), 0) AS done, "
        "coalesce(sum(state = 'done' AND annotator = ?), 0) AS done_by_me FROM pictures",
        (annotator,),
    )
    return dict(row)
