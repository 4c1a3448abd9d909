"""Composition: POST /v1/superpose, /v1/superpose/or and /v1/superpose/and."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.accept import EVENT_STREAM
from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.delivery import STATUSES, WishesDep, deliver
from service.api.problem import Problem
from service.pictures import ImageFormat
from service.schemas.answers import JobInfo, SuperposeResponse
from service.schemas.requests import AndRequest, OrRequest, SuperposeRequest
from service.services import ServicesDep

router = APIRouter(prefix="/v1/superpose", tags=["superpose"], route_class=Route)

_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": SuperposeResponse, "content": {t: {} for t in (*(f.media_type for f in ImageFormat), EVENT_STREAM)}},
    202: {"model": JobInfo, "description": "With Prefer: respond-async."},
    **{status: {"model": Problem} for status in STATUSES},
}


@router.post("", responses=_RESPONSES, response_model=None)
async def superpose(
    body: SuperposeRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """A picture of an expression: AND, OR, NOT and more, nested, over prompts and models; a text or a tree."""
    return await deliver(body, request, services, caller, wanted)


@router.post("/or", responses=_RESPONSES, response_model=None)
async def superpose_or(
    body: OrRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """A picture from the mixture of the components' densities."""
    return await deliver(body, request, services, caller, wanted)


@router.post("/and", responses=_RESPONSES, response_model=None)
async def superpose_and(
    body: AndRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """A picture that shows all components, or that all explain equally well (`method`)."""
    return await deliver(body, request, services, caller, wanted)
