"""Composition: POST /v1/superpose/or and /v1/superpose/and."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException

from pipelines.catalog import Catalog
from pipelines.composition import Expression, leaves
from pipelines.errors import InvalidInputError, UnknownModelError
from pipelines.layout import lay_out
from pipelines.model import Model
from pipelines.params import SamplingParams
from pipelines.sampler import check, picture_size
from service.api.accept import EVENT_STREAM, JSON, asynchronous, joined, preferred
from service.api.answers import answer, encoded, events, job_info, job_path, summary, when_over
from service.api.caller import CallerDep
from service.engine.engine import Engine
from service.engine.job import Job, Outcome, Source
from service.errors import Problem
from service.pictures import decode_picture
from service.registry import Record
from service.schemas import AndRequest, Asking, ImageFormat, JobInfo, OrRequest, SuperposeResponse
from service.services import Services, ServicesDep
from service.settings import Settings
from service.sources import Fit, prepare_source, sampled_size

router = APIRouter(prefix="/v1/superpose", tags=["superpose"])

_CLIENT_CLOSED_REQUEST: Final = 499
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
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Of the client's choice: the same request with the same key gets the same job, and the job "
            "outlives the connection.",
        ),
    ] = None,
) -> Wishes:
    """Read the headers."""
    return Wishes(joined(accept), asynchronous(joined(prefer)), idempotency_key)


WishesDep = Annotated[Wishes, Depends(wishes)]


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
    """A picture that every component finds equally likely."""
    return await _superpose(body, request, services, caller, wanted)


async def _superpose(
    body: OrRequest | AndRequest, request: Request, services: Services, caller: str, wanted: Wishes
) -> Response:
    """Queue a request, or find the job that its key stands for, and answer as the client wishes."""
    form = _form(body, wanted)
    if wanted.key is None:
        return await _respond(await _submit(body, services, caller), request, services, wanted, form)
    asked = f"{request.url.path} {body.model_dump_json()}"
    with services.keys.claim(caller, wanted.key, asked) as claim:
        if claim.record is None:
            claim.record = await _submit(body, services, caller)
        record = claim.record
    return await _respond(record, request, services, wanted, form)


def _form(body: OrRequest | AndRequest, wanted: Wishes) -> str:
    """JSON, EVENT_STREAM or an :class:`ImageFormat`; 406 where the answer cannot be had so."""
    form = preferred(wanted.accept, body.output_format)
    if isinstance(form, ImageFormat) and body.num_images != 1 and not wanted.at_once:
        detail = f"{form.media_type} carries one picture, but num_images is {body.num_images}; accept application/json"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, detail)
    return form


async def _submit(body: OrRequest | AndRequest, services: Services, caller: str) -> Record:
    """Refuse what cannot be answered, then queue the rest and remember it."""
    catalog = services.catalog
    check_models(body, catalog)
    expression = body.expression(catalog.names[0])
    async with services.models(leaf.model for leaf in leaves(expression)) as models:
        params = body.params(catalog.defaults(leaves(expression)[0].model))
        source = None
        if body.image is not None:
            fitting = body.fit, body.mask_feather
            given = body.image, body.mask, fitting, expression, params, models, services.settings
            params, source = await asyncio.to_thread(known_picture, *given)
            # From here on they are pixels; a job may wait, and be remembered, for long.
            body.image = body.mask = None
        elif body.mask is not None:
            raise InvalidInputError("a mask needs an image that it is of", field=("mask",))
        check(expression, params, models, on_canvas=source is not None)
        check_bounds(body, expression, params, models, services.settings)
        job = services.engine.submit(expression, params, body.ask(caller, services.settings.max_timeout_s), source)
    record = Record(job, body)
    services.registry.add(record)
    return record


def check_models(body: Asking, catalog: Catalog) -> None:
    """Refuse components of models that there are not."""
    for index, component in enumerate(body.components):
        if component.model is not None and component.model not in catalog.names:
            raise UnknownModelError(component.model, catalog.names, field=("components", index, "model"))


def known_picture(
    image: str,
    mask: str | None,
    fitting: tuple[Fit, float],
    expression: Expression,
    params: SamplingParams,
    models: Mapping[str, Model],
    settings: Settings,
) -> tuple[SamplingParams, Source]:
    """A request's own picture, ready, and the parameters at the size that is sampled for it. Not for the event loop.

    The answer has the size that the request names, else the picture's own, else, of a model of one size, the model's.

    Args:
        image: As the client sent it.
        mask: Likewise.
        fitting: How it comes to its size, and over how many pixels painting blends in.
        expression: What is composed.
        params: At the size that the request names.
        models: The loaded models by name.
        settings: The service's bounds.
    """
    known = decode_picture(image, "image", settings.max_pixels)
    painted = None if mask is None else decode_picture(mask, "mask", settings.max_pixels)
    cards = [models[leaf.model].card for leaf in leaves(expression)]
    own = known.size if all(card.multiple for card in cards) else (cards[0].width, cards[0].height)
    asked = params.width or own[0], params.height or own[1]
    width, height = sampled_size(asked, cards)
    check_pixels(width, height, params.num_images, settings)
    source = prepare_source(known, painted, asked, (width, height), *fitting)
    return replace(params, width=width, height=height), source


def check_pixels(width: int, height: int, images: int, settings: Settings) -> None:
    """Refuse more pixels than this service makes for one request."""
    pixels = width * height * images
    if pixels > settings.max_pixels:
        detail = f"width × height × num_images is {pixels}; this service allows {settings.max_pixels} in one request"
        raise InvalidInputError(detail, field=("num_images" if width * height <= settings.max_pixels else "width",))


def check_bounds(
    body: Asking,
    expression: Expression,
    params: SamplingParams,
    models: Mapping[str, Model],
    settings: Settings,
) -> None:
    """Refuse what this service will not do for one request."""
    check_pixels(*picture_size(expression, params, models), params.num_images, settings)
    _check_work(expression, params, models, settings)
    if body.timeout_s is not None and body.timeout_s > settings.max_timeout_s:
        detail = f"timeout_s must be at most {settings.max_timeout_s:g} here, got {body.timeout_s:g}"
        raise InvalidInputError(detail, field=("timeout_s",))


def _check_work(
    expression: Expression, params: SamplingParams, models: Mapping[str, Model], settings: Settings
) -> None:
    """Refuse more network rows than this service computes for one request."""
    layout, _ = lay_out(expression, params, models)
    work = len(layout.rows) * params.num_images * params.calls
    if work > settings.max_job_work:
        told = f"{len(layout.rows)} network rows × {params.num_images} images × {params.calls} steps is {work}"
        raise InvalidInputError(f"{told}; this service allows {settings.max_job_work}", field=("steps",))


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
        stream = events(record) if leaving is None else _events_until_left(record, leaving)
        return EventSourceResponse(stream, shutdown_grace_period=services.settings.stream_grace_s)
    outcome = await await_outcome(job, request, leaving)
    if outcome is None:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    if not isinstance(form, ImageFormat):
        return Response(await asyncio.to_thread(answer, record, outcome), media_type=JSON)
    (data,) = await asyncio.to_thread(encoded, outcome, form)
    (picture,) = summary(record, outcome).images
    headers = {
        "X-Superdiff-Id": job.id,
        "X-Superdiff-Seed": str(picture.seed),
        # In the order of the request's components: prompts may be too long for a header.
        "X-Superdiff-Log-Density": json.dumps(list(picture.log_density.values())),
        "X-Superdiff-Weight": json.dumps(list(picture.weight.values())),
    }
    return Response(data, media_type=form.media_type, headers=headers)


async def _events_until_left(record: Record, engine: Engine) -> AsyncIterator[ServerSentEvent]:
    """The job's events; a client that leaves before the last cancels the job."""
    try:
        async for event in events(record):
            yield event
    finally:
        engine.cancel(record.job)


async def await_outcome(job: Job, request: Request, engine: Engine | None) -> Outcome | None:
    """The job's outcome; None for a client that goes away, and the job is cancelled if the engine is given."""
    over = asyncio.create_task(when_over(job))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([over, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if engine is not None and not job.over:
            engine.cancel(job)
    return job.result.result() if job.over else None


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
