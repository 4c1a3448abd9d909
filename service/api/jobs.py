"""Jobs by their id: how they stand, what they made, what they tell, and how to stop them."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from pipelines.errors import InvalidInputError
from service.api.accept import EVENT_STREAM
from service.api.answers import (
    drawn_outcome,
    events,
    job_info,
    lift_cells,
    lift_picture,
    lift_scale,
    stored_info,
)
from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.problem import Problem
from service.api.waiting import when_over
from service.engine.job import Phase
from service.files import encoded_picture
from service.pictures import ImageFormat
from service.registry import Record
from service.schemas.answers import JobInfo, JobList
from service.services import Services, ServicesDep
from service.store.records import CursorError, Filters, JobKind, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses={404: {"model": Problem}}, route_class=Route)

JobId = Annotated[str, Path(max_length=64, description="As the answer or Location told it.")]
_CANCELLED_WITHIN_S: Final = 10.0  # by another process, perhaps
_IMAGES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {f.media_type: {} for f in ImageFormat}},
    409: {"model": Problem},
}


@router.get("")
async def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    request: Request,
    response: Response,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[JobKind | None, Query(description="Only jobs of this kind.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
    after: Annotated[
        str | None, Query(max_length=200, description="`next` of the page before; jobs that came since shift nothing.")
    ] = None,
) -> JobList:
    """The caller's jobs, newest first, by pages; with X-Client-Id, those alone that were sent with the same.

    A `Link` header leads to the next page. Finished jobs are kept for a while (`SUPERDIFF_KEEP_S`), those of
    synchronous requests for a shorter one.
    """
    positions = services.backend.positions()
    try:
        found, following = await services.keeper.page(Filters(caller.id, state, kind, caller.label), after, limit)
    except CursorError:
        detail = "after must be `next` of an earlier page, unchanged"
        raise InvalidInputError(detail, field=("query", "after")) from None
    if following is not None:
        address = request.url.include_query_params(after=following)
        response.headers["Link"] = f'<{address.path}?{address.query}>; rel="next"'
    data = [
        job_info(each, positions, with_result=False) if isinstance(each, Record) else stored_info(each, positions)
        for each in found
    ]
    return JobList(data=data, next=following)


@router.get("/{job_id}")
async def get_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> JobInfo:
    """A job as it stands."""
    return await _info(await services.keeper.find(job_id, caller.id), services)


@router.delete("/{job_id}")
async def delete_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> JobInfo:
    """Cancel a job that is not over; delete one that is, with all that it made. The answer tells how it ended.

    A cancelled job can be asked for until it is deleted in turn; a deleted one is 404, here too.
    """
    record = await services.keeper.find(job_id, caller.id)
    if record.job.over:
        info = await _info(record, services)
        await services.keeper.delete(record)
        return info
    record = await services.keeper.follow(job_id, caller.id)
    await services.keeper.cancel(record)
    await when_over(record.job, _CANCELLED_WITHIN_S)
    return await _info(record, services)


async def _info(record: Record, services: Services) -> JobInfo:
    """A job as it stands, and where it waits, if it does."""
    positions = services.backend.positions()
    job = record.job
    if job.phase is Phase.QUEUED and job.id not in positions and record.kept:
        place = await services.keeper.position(job.id)
        positions = {} if place is None else {job.id: place}
    return job_info(record, positions)


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
    record = await services.keeper.follow(job_id, caller.id)
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
    record = await services.keeper.find(job_id, caller.id)
    outcome = drawn_outcome(record.job, "images")
    if index >= len(outcome.pictures):
        raise HTTPException(HTTPStatus.NOT_FOUND, f"this job has {len(outcome.pictures)} images; the first is 0")
    wanted = image_format or record.rendering.image_format
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
    record = await services.keeper.find(job_id, caller.id)
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
