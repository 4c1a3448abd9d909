"""Composition: POST /v1/superpose/or and /v1/superpose/and."""

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from pipelines.composition import And, Or, leaves
from pipelines.errors import InvalidInputError
from pipelines.sampler import SamplingParams, check
from service.api.accept import EVENT_STREAM, preferred
from service.api.answers import answer, encoded, events, job_info, job_path
from service.api.caller import CallerDep
from service.engine.engine import Engine
from service.engine.job import Job, Outcome
from service.errors import Problem
from service.registry import Record
from service.schemas import AndRequest, ImageFormat, JobInfo, OrRequest, SuperposeResponse
from service.services import Services, ServicesDep

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
) -> SuperposeResponse | Response:
    """A picture from the mixture of the components' densities."""
    expression = body.expression(services.catalog.names[0])
    job = await _submit(body, expression, services, caller, accept)
    return await _respond(Record(job, body), request, services, accept, prefer)


@router.post("/and", responses=_RESPONSES, response_model=None)
async def superpose_and(
    body: AndRequest,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    accept: AcceptHeader = None,
    prefer: PreferHeader = None,
) -> SuperposeResponse | Response:
    """A picture that every component finds equally likely."""
    expression = body.expression(services.catalog.names[0])
    job = await _submit(body, expression, services, caller, accept)
    return await _respond(Record(job, body), request, services, accept, prefer)


async def _submit(
    body: OrRequest | AndRequest, expression: Or | And, services: Services, caller: str, accept: str | None
) -> Job:
    """Refuse what cannot be answered, then queue the rest."""
    wanted = preferred(accept, body.output_format)
    if isinstance(wanted, ImageFormat) and body.num_images != 1:
        detail = (
            f"{wanted.media_type} carries one picture, but num_images is {body.num_images}; accept application/json"
        )
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, detail)
    params = body.params()
    await asyncio.to_thread(_check, expression, params, services)
    return services.engine.submit(expression, params, body.ask(caller))


def _check(expression: Or | And, params: SamplingParams, services: Services) -> None:
    """Everything that can be refused before any sampling; loads the models that are named."""
    names = dict.fromkeys(leaf.model for leaf in leaves(expression))
    for name in names:
        services.catalog.entry(name)
    models = {name: services.catalog.get(name) for name in names}
    check(expression, params, models)
    card = models[leaves(expression)[0].model].card
    pixels = (params.width or card.width) * (params.height or card.height) * params.num_images
    if pixels > services.settings.max_pixels:
        limit = services.settings.max_pixels
        detail = f"width × height × num_images is {pixels}; this service allows {limit} pixels in one request"
        raise InvalidInputError(detail, field=("num_images",))


async def _respond(
    record: Record, request: Request, services: Services, accept: str | None, prefer: str | None
) -> SuperposeResponse | Response:
    """In the way that the client prefers: at once with the job's address, as events, as a picture, or as JSON."""
    job = record.job
    services.registry.add(record)
    if "respond-async" in (prefer or "").lower():
        info = await job_info(record, services.engine)
        headers = {"Location": job_path(job), "Preference-Applied": "respond-async"}
        return JSONResponse(info.model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)
    wanted = preferred(accept, record.body.output_format)
    if wanted == EVENT_STREAM:
        return EventSourceResponse(_events_until_left(record, services.engine))
    outcome = await _outcome(job, request, services.engine)
    if outcome is None:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    if not isinstance(wanted, ImageFormat):
        return await answer(record, outcome)
    (data,) = await encoded(outcome, wanted)
    (picture,) = (await answer(record, outcome, by_url=True)).images
    headers = {
        "X-Superdiff-Id": job.id,
        "X-Superdiff-Seed": str(picture.seed),
        # Prompts may hold any character; headers may not: JSON's escapes keep them ASCII.
        "X-Superdiff-Log-Density": json.dumps(picture.log_density),
        "X-Superdiff-Weight": json.dumps(picture.weight),
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
    finished = asyncio.wrap_future(job.result)
    gone = asyncio.create_task(_disconnected(request))
    try:
        ends: list[asyncio.Future[Any]] = [finished, gone]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return await finished if finished.done() else None
    finally:
        gone.cancel()
        if not finished.done():
            engine.cancel(job)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
