"""What operators do to a running service; answered on the machine itself only."""

import ipaddress
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Depends, Request
from starlette.exceptions import HTTPException

from pipelines.errors import CatalogError
from service.api.problem import Problem
from service.schemas.answers import Reloaded
from service.services import ServicesDep

# Of a request that came through a proxy, or from a page in a browser.
_FROM_ELSEWHERE: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via", "origin")


def from_this_machine(request: Request) -> None:
    """Refuse who asks from elsewhere, through a proxy or out of a browser."""
    if not _is_loopback(request.client.host if request.client else "") or any(
        name in request.headers for name in _FROM_ELSEWHERE
    ):
        detail = "this is answered to programs on the service's own machine only, and not through a proxy"
        raise HTTPException(HTTPStatus.FORBIDDEN, detail)


router = APIRouter(
    prefix="/v1/admin",
    tags=["admin"],
    responses={403: {"model": Problem}},
    dependencies=[Depends(from_this_machine)],
)


@router.post("/reload", responses={409: {"model": Problem}})
async def reload_catalog(services: ServicesDep) -> Reloaded:
    """Read the catalogue's file anew, and try again what could not be loaded; as SIGHUP does.

    Jobs finish on the models that they were taken in for. A file that makes no sense leaves all as it was: 409 says
    why.
    """
    try:
        changes = await services.backend.reload()
    except CatalogError as error:
        # Paths are the operator's own, and only the operator gets here.
        raise HTTPException(HTTPStatus.CONFLICT, f"the catalogue stays as it was: {error}") from error
    catalog = services.catalog
    failures = {name: services.backend.state(name).failure for name in catalog.names}
    return Reloaded(
        added=list(changes.added),
        changed=list(changes.changed),
        removed=list(changes.removed),
        failed={name: reason for name, reason in failures.items() if reason is not None},
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
