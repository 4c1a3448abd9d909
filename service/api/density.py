"""POST /v1/density: which component, or which part of an expression, explains a picture."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.accept import EVENT_STREAM
from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.delivery import STATUSES, WishesDep, deliver
from service.api.problem import Problem
from service.schemas.answers import DensityResponse, JobInfo
from service.schemas.requests import DensityRequest
from service.services import ServicesDep

router = APIRouter(prefix="/v1", tags=["density"], route_class=Route)

_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": DensityResponse, "content": {EVENT_STREAM: {}}},
    202: {"model": JobInfo, "description": "With Prefer: respond-async."},
    **{status: {"model": Problem} for status in STATUSES},
}


@router.post("/density", responses=_RESPONSES, response_model=None)
async def density(
    body: DensityRequest, request: Request, services: ServicesDep, caller: CallerDep, wanted: WishesDep
) -> Response:
    """The log-density of a picture under each component and operator, and the components' posterior.

    The Itô density estimator along the picture's own noising path, averaged over several draws of the noise, the same
    ones for every component. An operator's log-density is computed draw by draw and then averaged. The weight of a
    component means its log prior odds.
    """
    return await deliver(body, request, services, caller, wanted)
