"""Composition: POST /v1/superpose, /v1/superpose/or and /v1/superpose/and."""

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from service.api.accept import EVENT_STREAM, JSON, asynchronous, joined, preferred
from service.api.answers import answer, events, job_info, job_path, summary
from service.api.caller import CallerDep
from service.api.claims import IdempotencyKey, claimed
from service.api.problem import Problem
from service.api.waiting import abandoned, await_outcome, until_left
from service.orders import accept
from service.pictures import ImageFormat, encode_pictures
from service.registry import Record
from service.schemas.answers import JobInfo, SuperposeResponse
from service.schemas.requests import AndRequest, Drawing, OrRequest, SuperposeRequest
from service.services import Services, ServicesDep

router = APIRouter(prefix="/v1/superpose", tags=["superpose"])

_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": SuperposeResponse, "content": {t: {} for t in (*(f.media_type for f in ImageFormat), EVENT_STREAM)}},
    202: {"model": JobInfo, "description": "With Prefer: respond-async."},
    **{status: {"model": Problem} for status in (400, 404, 406, 409, 413, 415, 422, 429, 500, 503, 504)},
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a client wants its answer.

    Attributes:
        accept: The Accept header, its lines as one.
        at_once: Whether it wants the job's address, not the outcome.
        key: Its Idempotency-Key.
    """

    accept: str | None
    at_once: bool
    key: str | None


def wishes(
    accept: Annotated[
        list[str] | None,
        Header(description="application/json, image/png, image/jpeg, image/webp or text/event-stream."),
    ] = None,
    prefer: Annotated[
        list[str] | None, Header(description="respond-async for 202 at once and the job's Location.")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Wishes:
    """Read the headers."""
    return Wishes(joined(accept), asynchronous(joined(prefer)), idempotency_key)


WishesDep = Annotated[Wishes, Depends(wishes)]


@router.post("", responses=_RESPONSES, response_model=None)
async def superpose(
    body: SuperposeRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """A picture of an expression: AND, OR, NOT and more, nested, over prompts and models; a text or a tree."""
    return await _superpose(body, request, services, caller, wanted)


@router.post("/or", responses=_RESPONSES, response_model=None)
async def superpose_or(
    body: OrRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """A picture from the mixture of the components' densities."""
    return await _superpose(body, request, services, caller, wanted)


@router.post("/and", responses=_RESPONSES, response_model=None)
async def superpose_and(
    body: AndRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """A picture that shows all components, or that all explain equally well (`method`)."""
    return await _superpose(body, request, services, caller, wanted)


async def _superpose(body: Drawing, request: Request, services: Services, caller: str, wanted: Wishes) -> Response:
    """Queue a request, or find the job that its key stands for, and answer as the client wishes."""
    form = _form(body, wanted)

    def asked() -> str:
        return f"{request.url.path} {body.model_dump_json()}"

    record = await claimed(wanted.key, asked, caller, services, lambda: _submit(body, services, caller))
    return await _respond(record, request, services, wanted, form)


def _form(body: Drawing, wanted: Wishes) -> str:
    """JSON, EVENT_STREAM or an :class:`ImageFormat`; 406 where the answer cannot be had so."""
    form = preferred(wanted.accept, body.output_format)
    if isinstance(form, ImageFormat) and body.num_images != 1 and not wanted.at_once:
        detail = f"{form.media_type} carries one picture, but num_images is {body.num_images}; accept application/json"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, detail)
    return form


async def _submit(body: Drawing, services: Services, caller: str) -> Record:
    """Take a request in and remember its job."""
    order = await asyncio.to_thread(body.order, services.catalog.names, caller, services.settings.max_timeout_s)
    return await accept(order, services, body.output_format, by_url=body.response_format == "url")


async def _respond(record: Record, request: Request, services: Services, wanted: Wishes, form: str) -> Response:
    """In the way that the client prefers: at once with the job's address, as events, as a picture, or as JSON."""
    job = record.job
    if wanted.at_once:
        info = job_info(record, services.engine.positions())
        headers = {"Location": job_path(job), "Preference-Applied": "respond-async"}
        return JSONResponse(info.model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)
    # Whoever sends a key means to come back if the connection breaks, perhaps over another one already.
    leaving = None if wanted.key else services.engine
    if form == EVENT_STREAM:
        stream = until_left(events(record), job, leaving)
        return EventSourceResponse(stream, shutdown_grace_period=services.settings.stream_grace_s)
    outcome = await await_outcome(job, request, leaving)
    if outcome is None:
        return abandoned()
    if not isinstance(form, ImageFormat):
        return Response(await asyncio.to_thread(answer, record, outcome), media_type=JSON)
    (data,) = await asyncio.to_thread(encode_pictures, outcome.pictures, form)
    (picture,) = summary(record, outcome).images
    headers = {
        "X-Superdiff-Id": job.id,
        "X-Superdiff-Seed": str(picture.seed),
        # In the order of the request's components: prompts may be too long for a header.
        "X-Superdiff-Log-Density": json.dumps(list(picture.log_density.values())),
        "X-Superdiff-Weight": json.dumps(list(picture.weight.values())),
        "X-Superdiff-Lift": json.dumps(list(picture.lift.values())),
    }
    return Response(data, media_type=form.media_type, headers=headers)
