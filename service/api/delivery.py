"""How native requests are answered, whatever they ask for: at once, as events, as a picture, or as JSON."""

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from pipelines.errors import InvalidInputError
from service.api.accept import EVENT_STREAM, JSON, Lines, asynchronous, joined, preferred
from service.api.addresses import job_headers
from service.api.answers import answer, drawn, events, job_info
from service.api.bodies import let_go
from service.api.claims import IdempotencyKey, idempotency
from service.api.waiting import abandoned, await_outcome, until_left, when_over
from service.callers import Caller
from service.engine.job import Outcome
from service.files import encoded
from service.keeper.keeper import Keeper
from service.orders import accept
from service.pictures import ImageFormat
from service.registry import Record
from service.rendering import Rendering
from service.schemas.requests import Asking, Drawing
from service.services import Services
from service.store.records import JobRecord

STATUSES: Final = (400, 401, 403, 404, 406, 409, 413, 415, 422, 429, 500, 503, 504, 507)
"""The faults of a request that makes a job."""
_TOLD_WITHIN_S: Final = 5.0


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
        Lines,
        Header(
            description="application/json, text/event-stream, or, for a picture, image/png, image/jpeg or image/webp."
        ),
    ] = None,
    prefer: Annotated[Lines, Header(description="respond-async for 202 at once and the job's Location.")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Wishes:
    """Read the headers."""
    return Wishes(joined(accept), asynchronous(joined(prefer)), idempotency_key)


WishesDep = Annotated[Wishes, Depends(wishes)]


async def deliver(body: Asking, request: Request, services: Services, caller: Caller, wanted: Wishes) -> Response:
    """Queue a request, or find the job that its key stands for, and answer as the client wishes."""
    form = _form(body, wanted)
    _check_callback(body, services, wanted)

    def asked() -> str:
        return f"{request.url.path} {body.model_dump_json()}"

    order = await asyncio.to_thread(body.order, services.catalog.names, caller.id, services.settings.max_timeout_s)
    rendering = Rendering(body.pictured or ImageFormat.PNG, body.by_url)
    key = idempotency(wanted.key, caller, asked)
    record = await accept(
        order,
        services,
        caller,
        rendering,
        keep=wanted.at_once,
        idempotency=key,
        followed=form == EVENT_STREAM and not wanted.at_once,
        callback_url=body.callback_url,
    )
    del order
    body.let_go()
    await let_go(request)
    headers = job_headers(request, record.job)
    response = await _respond(record, request, services, wanted, form)
    response.headers.update(headers)
    return response


def _check_callback(body: Asking, services: Services, wanted: Wishes) -> None:
    """Refuse an address that may not be told when the job is over."""
    if body.callback_url is None:
        return
    if not wanted.at_once:
        detail = "callback_url is for asynchronous requests: send Prefer: respond-async"
        raise InvalidInputError(detail, field=("callback_url",))
    services.callbacks.checked(body.callback_url)


async def message_of(stored: JobRecord, keeper: Keeper) -> bytes:
    """What a callback says of a job that is over: its document, as GET tells it."""
    record = await keeper.find(stored.id, stored.caller)
    # Here its end may be told a moment after it was written.
    await when_over(record.job, _TOLD_WITHIN_S)
    return job_info(record, {}).model_dump_json().encode()


def _form(body: Asking, wanted: Wishes) -> str:
    """JSON, EVENT_STREAM or an :class:`ImageFormat`; 406 where the answer cannot be had so."""
    form = preferred(wanted.accept, body.pictured)
    if isinstance(form, ImageFormat) and isinstance(body, Drawing) and body.num_images != 1 and not wanted.at_once:
        detail = f"{form.media_type} carries one picture, but num_images is {body.num_images}; accept application/json"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, detail)
    return form


async def _respond(record: Record, request: Request, services: Services, wanted: Wishes, form: str) -> Response:
    """In the way that the client prefers."""
    job = record.job
    if wanted.at_once:
        info = job_info(record, services.backend.positions())
        headers = {"Preference-Applied": "respond-async"}
        return JSONResponse(info.model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)
    # Whoever sends a key means to come back if the connection breaks, perhaps over another one already.
    leaving = None if wanted.key else services.backend
    if form == EVENT_STREAM:
        stream = until_left(events(record), job, leaving)
        return EventSourceResponse(stream, shutdown_grace_period=services.settings.stream_grace_s)
    outcome = await await_outcome(job, request, leaving)
    if outcome is None:
        return abandoned()
    if isinstance(form, ImageFormat):
        return await _picture(record, outcome, form)
    return Response(await asyncio.to_thread(answer, record, outcome), media_type=JSON)


async def _picture(record: Record, outcome: Outcome, form: ImageFormat) -> Response:
    """The only picture, with what there is to say of it in headers."""
    (data,) = await asyncio.to_thread(encoded, record, outcome, form)
    (picture,) = drawn(record, outcome).images
    # In the order of the request's components: prompts may be too long for a header.
    kappa = json.dumps(list(picture.kappa.values()))
    headers = {
        "X-Superdiff-Seed": str(picture.seed),
        "X-Superdiff-Log-Density": json.dumps(list(picture.log_density.values())),
        "X-Superdiff-Kappa": kappa,
        "X-Superdiff-Weight": kappa,
        "X-Superdiff-Lift": json.dumps(list(picture.lift.values())),
    }
    return Response(data, media_type=form.media_type, headers=headers)
