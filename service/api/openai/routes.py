"""POST /v1/images/generations and /v1/images/edits."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sse_starlette import EventSourceResponse

from service.api.accept import EVENT_STREAM, JSON
from service.api.addresses import job_headers
from service.api.bodies import Route, let_go
from service.api.caller import CallerDep
from service.api.claims import IdempotencyKey, idempotency
from service.api.openai.answers import answer
from service.api.openai.form import Files, published_form, read_form
from service.api.openai.schemas import ErrorResponse, GeneratedImages, ImageRequest
from service.api.openai.streams import Kind, events
from service.api.openai.translation import body_of, in_own_words, order_of
from service.api.waiting import abandoned, await_outcome, until_left
from service.callers import Caller
from service.orders import accept
from service.registry import Record
from service.rendering import Rendering
from service.services import Services, ServicesDep

router = APIRouter(prefix="/v1/images", tags=["openai"], route_class=Route)

_FAULTS: Final = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507)
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": GeneratedImages, "content": {EVENT_STREAM: {}}},
    **{status: {"model": ErrorResponse} for status in _FAULTS},
}
# What a request asks for besides its native body.
_HOW: Final = {"model", "response_format", "output_compression", "stream", "partial_images"}


@router.post("/generations", responses=_ANSWERS, response_model=None)
async def generations(
    asked: ImageRequest,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Pictures of a prompt, or of an expression over prompts."""
    record = await _record(asked, None, request, services, caller, idempotency_key)
    await let_go(request)
    return await _respond(record, asked, "image_generation", request, services, idempotency_key)


@router.post("/edits", responses=_ANSWERS, response_model=None, openapi_extra=published_form())
async def edits(
    request: Request, services: ServicesDep, caller: CallerDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Pictures that begin from one: painted anew where the mask is transparent, or all of it at a strength."""
    fields, files = await read_form(request, services.settings.json_bounds)
    try:
        asked = ImageRequest.model_validate(fields)
    except ValidationError as error:
        places = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(places, body=fields) from None
    record = await _record(asked, files, request, services, caller, idempotency_key)
    del files
    await let_go(request)
    return await _respond(record, asked, "image_edit", request, services, idempotency_key)


async def _record(
    asked: ImageRequest, files: Files | None, request: Request, services: Services, caller: Caller, key: str | None
) -> Record:
    """Queue a request, or find the job that its key stands for."""
    body = body_of(asked, files)
    if caller.label is None and asked.user is not None:
        caller = replace(caller, label=asked.user)

    def whole() -> str:
        sent = [] if files is None else [hashlib.sha256(data).hexdigest() for data in (files.image, files.mask or b"")]
        return " ".join([request.url.path, asked.model_dump_json(include=_HOW), body.model_dump_json(), *sent])

    given = asked, body, services.catalog.names, caller.id, services.settings.max_timeout_s
    order = await asyncio.to_thread(order_of, *given)
    rendering = Rendering(asked.output_format, asked.response_format == "url", asked.output_compression)
    with in_own_words(asked):
        again = idempotency(key, caller, whole)
        return await accept(order, services, caller, rendering, idempotency=again, followed=asked.stream)


async def _respond(
    record: Record, asked: ImageRequest, kind: Kind, request: Request, services: Services, key: str | None
) -> Response:
    """Events or one answer; a client that leaves cancels its job, unless it sent a key and so may come back."""
    job, leaving = record.job, None if key else services.backend
    headers = job_headers(request, job)
    if asked.stream:
        stream = until_left(events(record, kind), job, leaving)
        return EventSourceResponse(stream, headers=headers, shutdown_grace_period=services.settings.stream_grace_s)
    outcome = await await_outcome(job, request, leaving)
    if outcome is None:
        return abandoned()

    def address(index: int) -> str:
        return str(request.url_for("job_image", job_id=job.id, index=index))

    return Response(await asyncio.to_thread(answer, record, outcome, address), media_type=JSON, headers=headers)
