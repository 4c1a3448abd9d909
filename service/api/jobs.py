"""Jobs by their id: how they stand, what they made, what they tell, and how to stop them."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Response
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from service.api.accept import EVENT_STREAM
from service.api.answers import (
    drawn_outcome,
    events,
    job_info,
    lift_cells,
    lift_picture,
    lift_scale,
)
from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.problem import Problem
from service.api.waiting import when_over
from service.files import encoded_picture
from service.pictures import ImageFormat
from service.schemas.answers import JobInfo, JobList
from service.services import ServicesDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses={404: {"model": Problem}}, route_class=Route)

JobId = Annotated[str, Path(max_length=64, description="As the answer or Location told it.")]
_IMAGES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {f.media_type: {} for f in ImageFormat}},
    409: {"model": Problem},
}


@router.get("")
async def list_jobs(
    services: ServicesDep, caller: CallerDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> JobList:
    """The caller's newest jobs, newest first; with X-Client-Id, those alone that were sent with the same."""
    positions = services.engine.positions()
    registry, label = services.registry, caller.label
    records = registry.of(caller.id) if label is None else registry.of_session(caller.id, label)
    return JobList(data=[job_info(record, positions, with_result=False) for record in records[:limit]])


@router.get("/{job_id}")
async def get_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> JobInfo:
    """A job as it stands."""
    return job_info(services.registry.get(job_id, caller.id), services.engine.positions())


@router.delete("/{job_id}")
async def cancel_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> JobInfo:
    """Cancel a job and tell how it ended: cancelled, or what it had come to before. Any number of times."""
    record = services.registry.get(job_id, caller.id)
    services.engine.cancel(record.job)
    await when_over(record.job)
    return job_info(record, services.engine.positions())


@router.get("/{job_id}/events", responses={200: {"content": {EVENT_STREAM: {}}}}, response_class=Response)
async def job_events(
    job_id: JobId,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: Annotated[str | None, Header(max_length=20, description="Go on after this event.")] = None,
) -> EventSourceResponse:
    """Server-sent events: queued, progress, preview, then completed, failed or cancelled.

    A slow reader sees the newest progress and misses older; the last event is never missed.
    """
    record = services.registry.get(job_id, caller.id)
    after = int(last_event_id) if last_event_id is not None and last_event_id.isdecimal() else 0
    return EventSourceResponse(events(record, after), shutdown_grace_period=services.settings.stream_grace_s)


@router.get("/{job_id}/images/{index}", responses=_IMAGES, response_class=Response)
async def job_image(
    job_id: JobId,
    index: Annotated[int, Path(ge=0)],
    services: ServicesDep,
    caller: CallerDep,
    image_format: Annotated[ImageFormat | None, Query(alias="format", description="None for the request's.")] = None,
) -> Response:
    """A picture of a completed job."""
    record = services.registry.get(job_id, caller.id)
    outcome = drawn_outcome(record.job, "images")
    if index >= len(outcome.pictures):
        raise HTTPException(HTTPStatus.NOT_FOUND, f"this job has {len(outcome.pictures)} images; the first is 0")
    wanted = image_format or record.image_format
    data = await asyncio.to_thread(encoded_picture, record, outcome, index, wanted)
    return Response(data, media_type=wanted.media_type)


@router.get(
    "/{job_id}/lift-maps/{index}/{component}",
    responses={200: {"content": {"image/png": {}}}, 409: {"model": Problem}},
    response_class=Response,
)
async def job_lift_map(
    job_id: JobId,
    index: Annotated[int, Path(ge=0, description="Which image.")],
    component: Annotated[int, Path(ge=0, description="Which component, in the answer's order; the first is 0.")],
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """Where in a picture a component is explained, for a request with include_lift_maps.

    Red is above 0, blue below; `X-Superdiff-Scale` tells how many nats a cell in full colour has.
    """
    record = services.registry.get(job_id, caller.id)
    outcome = drawn_outcome(record.job, "lift maps")
    if not record.job.ask.keep_lift_maps:
        raise HTTPException(HTTPStatus.CONFLICT, "this job kept no lift maps; ask for them with include_lift_maps")
    images, components = outcome.lift.shape
    if index >= images or component >= components:
        detail = f"this job has {images} images of {components} components; the first are 0"
        raise HTTPException(HTTPStatus.NOT_FOUND, detail)
    cells, scale = lift_cells(record.job, outcome, index, component), lift_scale(outcome, index)
    if cells is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "the lift of this component is not known")
    drawn = await asyncio.to_thread(lift_picture, cells, scale)
    headers = {"X-Superdiff-Scale": f"{scale:g}"}
    return Response(drawn, media_type=ImageFormat.PNG.media_type, headers=headers)
