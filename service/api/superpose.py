"""Composition: POST /v1/superpose/or and /v1/superpose/and."""

import asyncio
import base64
import json
import time
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response
from starlette.exceptions import HTTPException

from pipelines.composition import And, Or, leaves
from pipelines.errors import InvalidInputError
from pipelines.sampler import SamplingParams, check, image_seed
from service.api.accept import wants_picture
from service.engine.job import Job, Outcome
from service.errors import Problem
from service.pictures import encode_picture
from service.schemas import (
    AndRequest,
    ImageFormat,
    OrRequest,
    Picture,
    SuperposeResponse,
    Timings,
    TrajectoryPoint,
    component_names,
)
from service.services import Services, ServicesDep

router = APIRouter(prefix="/v1/superpose", tags=["superpose"])

_CLIENT_CLOSED_REQUEST: Final = 499
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": SuperposeResponse, "content": {f.media_type: {} for f in ImageFormat}},
    **{status: {"model": Problem} for status in (400, 404, 406, 413, 415, 422, 429, 500, 503)},
}

AcceptDep = Annotated[str | None, Header(description="application/json, or image/png, image/jpeg, image/webp.")]


@router.post("/or", responses=_RESPONSES, response_model=None)
async def superpose_or(
    body: OrRequest, request: Request, services: ServicesDep, accept: AcceptDep = None
) -> SuperposeResponse | Response:
    """A picture from the mixture of the components' densities."""
    return await _superpose(body, body.expression(services.catalog.names[0]), request, services, accept)


@router.post("/and", responses=_RESPONSES, response_model=None)
async def superpose_and(
    body: AndRequest, request: Request, services: ServicesDep, accept: AcceptDep = None
) -> SuperposeResponse | Response:
    """A picture that every component finds equally likely."""
    return await _superpose(body, body.expression(services.catalog.names[0]), request, services, accept)


async def _superpose(
    body: OrRequest | AndRequest, expression: Or | And, request: Request, services: Services, accept: str | None
) -> SuperposeResponse | Response:
    bare = wants_picture(accept, body.output_format)
    if bare is not None and body.num_images != 1:
        detail = f"{bare.media_type} carries one picture, but num_images is {body.num_images}; accept application/json"
        raise HTTPException(HTTPStatus.NOT_ACCEPTABLE, detail)
    params = body.params()
    await asyncio.to_thread(_check, expression, params, services)
    job = services.engine.submit(expression, params, keep_trajectory=body.include_trajectory)
    outcome = await _outcome(job, request)
    if outcome is None:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)
    wanted = bare or body.output_format
    encoded = [await asyncio.to_thread(encode_picture, pixels, wanted) for pixels in outcome.pictures]
    answer = _answer(job, outcome, encoded)
    if bare is None:
        return answer
    (picture,) = answer.images
    headers = {
        "X-Superdiff-Id": job.id,
        "X-Superdiff-Seed": str(picture.seed),
        # Prompts may hold any character; headers may not: JSON's escapes keep them ASCII.
        "X-Superdiff-Log-Density": json.dumps(picture.log_density),
        "X-Superdiff-Weight": json.dumps(picture.weight),
    }
    return Response(encoded[0], media_type=bare.media_type, headers=headers)


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


async def _outcome(job: Job, request: Request) -> Outcome | None:
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
            job.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(job: Job, outcome: Outcome, encoded: list[bytes]) -> SuperposeResponse:
    prompts = leaves(job.expression)
    names = component_names(prompts)
    return SuperposeResponse(
        id=job.id,
        created=int(time.time()),
        models=list(dict.fromkeys(prompt.model for prompt in prompts)),
        components=names,
        seed=job.params.seed,
        images=[
            Picture(
                b64_json=base64.b64encode(data).decode(),
                seed=image_seed(job.params.seed, i),
                log_density=dict(zip(names, outcome.log_density[i].tolist(), strict=True)),
                weight=dict(zip(names, outcome.mean_weights[i].tolist(), strict=True)),
                clamp_rate=float(outcome.clamp_rate[i]),
            )
            for i, data in enumerate(encoded)
        ],
        trajectory=[
            TrajectoryPoint(sigma=p.sigma, log_density=p.log_density.tolist(), weight=p.weights.tolist())
            for p in outcome.trajectory
        ]
        or None,
        timings=Timings(queued_ms=outcome.queued_s * 1e3, run_ms=outcome.run_s * 1e3, steps=job.params.steps),
    )
