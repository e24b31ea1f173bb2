"""The server of the rating page, which shows one mask at a time. `/api/openapi.json` describes the routes.

    GET  /                      the page; its scripts and styles are under /assets
    POST /api/next              the mask that this person rates next: the one shown already, or else a new one
    GET  /api/jobs/N            a mask that this person has rated
    GET  /api/jobs/N/VIEW.png   a view of a mask
    POST /api/ratings           saves a rating; the response is that of /api/next

Requests name the rater with ?rater=NAME. The page gets neither the source of a mask nor which masks are of one object.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from sam_jax.errors import EXPECTED_ERRORS
from sam_jax.evals.rating.study import HIGHEST_RATING, LOWEST_RATING, Rating, Study
from sam_jax.evals.rating.views import render
from sam_jax.web.guard import Access, Guard
from sam_jax.web.serving import PERSON, add_error_handlers, serve_page

MAX_BODY = 4096  # bytes

Rater = Annotated[str, Query(pattern=PERSON, description="who rates")]
JobNumber = Annotated[int, Path(ge=0, le=2**53)]


class RatingRequest(BaseModel):
    """The rating of a mask, as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job: int
    rating: int = Field(ge=LOWEST_RATING, le=HIGHEST_RATING)
    seconds: float | None = Field(None, ge=0, le=1e6, allow_inf_nan=False)  # time that the rating took


class State(BaseModel):
    """What the page shows."""

    job: int | None  # index of the mask; None: no mask is left for this person
    jobs: int  # number of masks in the study
    rated: int  # number of rated masks
    rating: int | None = None  # present rating of the mask
    prompt: Literal["dot", "box"] | None = None
    previous: int | None  # index of the mask that this person rated before


def create_app(study: Study, access: Access) -> FastAPI:
    """Creates the ASGI application.

    Args:
        access: which visitors may use it.
    """
    app = FastAPI(title="sam-jax rate", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, access=access, max_body=MAX_BODY)
    add_error_handlers(app)
    serve_page(app, "rate")

    def describe(number: int | None, rater: str) -> State:
        previous = study.previous(rater, number)
        state = State(job=number, jobs=len(study.jobs), rated=len(study.ratings), previous=previous)
        if number is not None:
            if given := study.ratings.get(number):
                state.rating = given.rating
            state.prompt = "dot" if study.jobs[number].point else "box"
        return state

    @app.post("/api/next")
    def next_job(rater: Rater) -> State:
        return describe(study.claim(rater), rater)

    @app.get("/api/jobs/{number}")
    def rated_job(number: JobNumber, rater: Rater) -> State:
        given = study.ratings.get(number)
        if given is None or given.rater != rater:
            raise HTTPException(404, f"expected a mask that {rater} has rated")
        return describe(number, rater)

    @app.get("/api/jobs/{number}/{view}.png", response_class=Response)
    def show_view(number: JobNumber, view: Literal["picture", "overlay", "mask", "zoom", "zoom_overlay"]) -> Response:
        if number >= len(study.jobs):
            raise HTTPException(404, f"expected a job of 0 to {len(study.jobs) - 1}")
        try:
            content = render(study.jobs[number], view)
        except EXPECTED_ERRORS as error:
            print(f"{app.title}: {error}", file=sys.stderr)
            raise HTTPException(409, "this image can't be shown") from error  # raters do not learn its path
        return Response(content, media_type="image/png")

    @app.post("/api/ratings")
    def rate(request: RatingRequest, rater: Rater) -> State:
        study.rate(Rating(**request.model_dump(), rater=rater))
        return describe(study.claim(rater), rater)

    return app
