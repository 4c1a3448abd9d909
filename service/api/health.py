"""Whether the service lives, and whether it is ready."""

from http import HTTPStatus

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from service.api.bodies import Route
from service.api.problem import Problem
from service.schemas.answers import Health
from service.services import ServicesDep

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/healthz", responses={503: {"model": Problem}})
async def healthz(services: ServicesDep) -> Health:
    """200 while jobs can be computed, now or later."""
    if services.backend.stopped is not None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, services.backend.stopped)
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Problem}})
async def readyz(services: ServicesDep) -> Health:
    """200 once the models are loaded, until the service shuts down."""
    backend, catalog = services.backend, services.catalog
    if backend.unready is not None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, backend.unready)
    if services.keeper.trouble is not None:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"jobs cannot be written down: {services.keeper.trouble}")
    missing = [name for name in catalog.names if not backend.state(name).loaded]
    if services.settings.preload and len(missing) == len(catalog.names):
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "no model could be loaded; the log says why")
    return Health(status="ready", detail=f"not loaded: {', '.join(missing)}" if missing else None)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(services: ServicesDep) -> Response:
    """Prometheus's text format."""
    return Response(generate_latest(services.backend.registry), media_type=CONTENT_TYPE_LATEST)
