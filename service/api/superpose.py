"""Composition: POST /v1/superpose/or and /v1/superpose/and."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from pipelines.composition import And, Or, leaves
from pipelines.errors import InvalidInputError
from pipelines.model import Model
from pipelines.sampler import SamplingParams, check, lay_out, picture_size
from service.api.accept import EVENT_STREAM, JSON, preferred
from service.api.answers import answer, encoded, events, job_info, job_path, summary, when_over
from service.api.caller import CallerDep
from service.engine.engine import Engine
from service.engine.job import Job, Outcome
from service.errors import Problem
from service.registry import Record
from service.schemas import AndRequest, ImageFormat, JobInfo, OrRequest, SuperposeResponse
from service.services import Services, ServicesDep
from service.settings import Settings

router = APIRouter(prefix="/v1/superpose", tags=["superpose"])

_CLIENT_CLOSED_REQUEST: Final = 499
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": SuperposeResponse, "content": {t: {} for t in (*(f.media_type for f in ImageFormat), EVENT_STREAM)}},
    202: {"model": JobInfo, "description": "With Prefer: respond-async."},
    **{status: {"model": Problem} for status in (400, 404, 406, 413, 415, 422, 429, 500, 503, 504)},
}

AcceptHeader = Annotated[
    str | None, Header(description="application/json, image/png, image/jpeg, image/webp or text/event-stream.")
]
PreferHeader = Annotated[str | None, Header(description="respond-async for 202 at once and the job's Location.")]


@router.post("/or", responses=_RESPONSES, response_model=None)
async def superpose_or(
    body: OrRequest,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    accept: AcceptHeader = None,
    prefer: PreferHeader = None,
) -> Response:
    """A picture from the mixture of the components' densities."""
    job = await _submit(body, services, caller, accept)
    return await _respond(Record(job, body), request, services, accept, prefer)


@router.post("/and", responses=_RESPONSES, response_model=None)
async def superpose_and(
    body: AndRequest,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    accept: AcceptHeader = None,
    prefer: PreferHeader = None,
) -> Response:
    """A picture that every component finds equally likely."""
    job = await _submit(body, services, caller, accept)
    return await _respond(Record(job, body), request, services, accept, prefer)


async def _submit(body: OrRequest | AndRequest, services: Services, caller: str, accept: str | None) -> Job:
    """Refuse what cannot be answered, then queue the rest."""
    expression = body.expression(services.catalog.names[0])
    wanted = preferred(accept, body.output_format)
    if isinstance(wanted, ImageFormat) and body.num_images != 1:
        detail = (
            f"{wanted.media_type} carries one picture, but num_images is {body.num_images}; accept application/json"
        )
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, detail)
    params = body.params()
    models = await _models(expression, services)
    check(expression, params, models)
    _check_bounds(body, expression, params, models, services.settings)
    return services.engine.submit(expression, params, body.ask(caller, services.settings.max_timeout_s))


async def _models(expression: Or | And, services: Services) -> Mapping[str, Model]:
    """The models that an expression names, loaded."""
    names = dict.fromkeys(leaf.model for leaf in leaves(expression))
    for name in names:
        if services.catalog.loaded(name) is None and not services.ready.is_set():
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"the model {name!r} is still being loaded")
    return {name: services.catalog.loaded(name) or await services.load(name) for name in names}


def _check_bounds(
    body: OrRequest | AndRequest,
    expression: Or | And,
    params: SamplingParams,
    models: Mapping[str, Model],
    settings: Settings,
) -> None:
    """Refuse what this service will not do for one request."""
    width, height = picture_size(expression, params, models)
    pixels = width * height * params.num_images
    if pixels > settings.max_pixels:
        detail = f"width × height × num_images is {pixels}; this service allows {settings.max_pixels} in one request"
        raise InvalidInputError(detail, field=("num_images" if width * height <= settings.max_pixels else "width",))
    layout, _ = lay_out(expression, params)
    work = len(layout.rows) * params.num_images * params.steps
    if work > settings.max_job_work:
        told = f"{len(layout.rows)} network rows × {params.num_images} images × {params.steps} steps is {work}"
        raise InvalidInputError(f"{told}; this service allows {settings.max_job_work}", field=("steps",))
    if body.timeout_s is not None and body.timeout_s > settings.max_timeout_s:
        detail = f"timeout_s must be at most {settings.max_timeout_s:g} here, got {body.timeout_s:g}"
        raise InvalidInputError(detail, field=("timeout_s",))


async def _respond(
    record: Record, request: Request, services: Services, accept: str | None, prefer: str | None
) -> Response:
    """In the way that the client prefers: at once with the job's address, as events, as a picture, or as JSON."""
    job = record.job
    services.registry.add(record)
    if "respond-async" in (prefer or "").lower():
        info = job_info(record, services.engine.positions())
        headers = {"Location": job_path(job), "Preference-Applied": "respond-async"}
        return JSONResponse(info.model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)
    wanted = preferred(accept, record.body.output_format)
    if wanted == EVENT_STREAM:
        stream = _events_until_left(record, services.engine)
        return EventSourceResponse(stream, shutdown_grace_period=services.settings.stream_grace_s)
    outcome = await _outcome(job, request, services.engine)
    if outcome is None:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    if not isinstance(wanted, ImageFormat):
        return Response(await asyncio.to_thread(answer, record, outcome), media_type=JSON)
    (data,) = await asyncio.to_thread(encoded, outcome, wanted)
    (picture,) = summary(record, outcome).images
    headers = {
        "X-Superdiff-Id": job.id,
        "X-Superdiff-Seed": str(picture.seed),
        # In the order of the request's components: prompts may be too long for a header.
        "X-Superdiff-Log-Density": json.dumps(list(picture.log_density.values())),
        "X-Superdiff-Weight": json.dumps(list(picture.weight.values())),
    }
    return Response(data, media_type=wanted.media_type, headers=headers)


async def _events_until_left(record: Record, engine: Engine) -> AsyncIterator[ServerSentEvent]:
    """The job's events; a client that leaves before the last cancels the job."""
    try:
        async for event in events(record):
            yield event
    finally:
        engine.cancel(record.job)


async def _outcome(job: Job, request: Request, engine: Engine) -> Outcome | None:
    """The job's outcome; a client that goes away cancels the job and gets None."""
    over = asyncio.create_task(when_over(job))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([over, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not job.over:
            engine.cancel(job)
    return job.result.result() if job.over else None


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
