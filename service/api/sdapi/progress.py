"""How the caller's own jobs of this dialect stand, and how to stop them; nobody else's."""

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from service.api.bodies import Route
from service.api.caller import CallerDep
from service.api.sdapi.answers import timestamp
from service.api.sdapi.sessions import SessionsDep
from service.callers import Caller
from service.engine.job import Job, Phase, Preview
from service.pictures import ImageFormat, encode_picture
from service.registry import Record
from service.schemas.fields import NAME_LENGTH
from service.services import Services, ServicesDep

router = APIRouter(tags=["automatic1111"], route_class=Route)

_RUNNING: Final = (Phase.RUNNING, Phase.DECODING)
_NO_PREVIEW: Final = -1

TaskId = Annotated[str | None, Query(max_length=NAME_LENGTH, description="One task's; none for all of the caller's.")]


class Progress(BaseModel):
    """How far the caller's running job is."""

    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None = None
    textinfo: str | None = None


class Task(BaseModel):
    """Which task is meant."""

    force_task_id: Annotated[str | None, Field(max_length=NAME_LENGTH, description="None for all of the caller's.")] = (
        None
    )


class ProgressOf(BaseModel):
    """A question about one task."""

    id_task: Annotated[str | None, Field(max_length=NAME_LENGTH)] = None
    id_live_preview: Annotated[int, Field(description="Of the preview that the client has already.")] = _NO_PREVIEW
    live_preview: bool = True


class TaskProgress(BaseModel):
    """How one task stands."""

    active: bool
    queued: bool
    paused: bool = False
    completed: bool
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int = _NO_PREVIEW
    textinfo: str | None = None


@router.get("/sdapi/v1/progress")
async def progress(
    services: ServicesDep,
    sessions: SessionsDep,
    caller: CallerDep,
    force_task_id: TaskId = None,
    *,
    skip_current_image: Annotated[bool, Query(description="Leave the preview out.")] = False,
) -> Progress:
    """The caller's running job, else the one that runs next; progress 0 and job_count 0 where there is none."""
    records = await _unfinished(services, caller, force_task_id)
    current = _current(records)
    if current is None:
        return Progress(progress=0, eta_relative=0, state=_state([], None))
    job, image = current.job, None
    if not skip_current_image:
        sessions.watchers.watch(job)
        preview = _preview(job)
        image = await _drawn(preview, ImageFormat.PNG) if preview else None
    eta = _eta(job)
    return Progress(
        progress=_share(job),
        eta_relative=0 if eta is None else eta,
        state=_state(records, current),
        current_image=image,
        textinfo=_told(job),
    )


@router.post("/internal/progress")
async def internal_progress(
    body: ProgressOf, services: ServicesDep, sessions: SessionsDep, caller: CallerDep
) -> TaskProgress:
    """One of the caller's tasks by its force_task_id, with a preview if there is a newer one."""
    records = await _records(services, caller, body.id_task)
    # Of several of one name the newest is meant, as it stands last.
    current = _current(records) if body.id_task is None else next(reversed(records), None)
    if current is None:
        return TaskProgress(active=False, queued=False, completed=False, textinfo="Waiting...")
    job = current.job
    if job.phase not in _RUNNING:
        queued = job.phase is Phase.QUEUED
        return TaskProgress(active=False, queued=queued, completed=job.over, textinfo=_told(job))
    told = TaskProgress(
        active=True,
        queued=False,
        completed=False,
        progress=_share(job),
        eta=_eta(job),
        id_live_preview=body.id_live_preview,
        textinfo=_told(job),
    )
    if body.live_preview:
        sessions.watchers.watch(job)
        preview = _preview(job)
        if preview is not None and preview.step != body.id_live_preview:
            told.id_live_preview = preview.step
            told.live_preview = f"data:image/jpeg;base64,{await _drawn(preview, ImageFormat.JPEG)}"
    return told


@router.post("/sdapi/v1/interrupt")
async def interrupt(services: ServicesDep, caller: CallerDep, task: Task | None = None) -> dict[str, Any]:
    """End the caller's jobs of this dialect, those that wait too; their requests are answered without pictures."""
    await _cancel(services, caller, task)
    return {}


@router.post("/sdapi/v1/skip")
async def skip(services: ServicesDep, caller: CallerDep, task: Task | None = None) -> None:
    """The same as interrupt: a job's pictures are drawn together, so none can be skipped alone."""
    await _cancel(services, caller, task)


async def _cancel(services: Services, caller: Caller, task: Task | None) -> None:
    for record in await _unfinished(services, caller, task.force_task_id if task else None):
        services.backend.cancel(record.job)


async def _records(services: Services, caller: Caller, task: str | None) -> list[Record]:
    """The caller's jobs of this dialect, oldest first."""
    own = await services.keeper.tasks(*caller.session)
    return [record for record in own if task in {None, record.rendering.task}]


async def _unfinished(services: Services, caller: Caller, task: str | None) -> list[Record]:
    return [record for record in await _records(services, caller, task) if not record.job.over]


def _current(records: Sequence[Record]) -> Record | None:
    """The oldest that runs, else the oldest that waits."""
    left = [record for record in records if not record.job.over]
    return next((record for record in left if record.job.phase in _RUNNING), next(iter(left), None))


def _state(records: Sequence[Record], current: Record | None) -> dict[str, Any]:
    job = current.job if current else None
    return {
        "skipped": False,
        "interrupted": bool(job and job.cancelled),
        "stopping_generation": False,
        "job": current.rendering.task if current else "",
        "job_count": len(records),
        "job_timestamp": timestamp(job) if job else "0",
        "job_no": 0,
        "sampling_step": job.index if job else 0,
        "sampling_steps": job.plan.calls if job else 0,
    }


def _share(job: Job) -> float:
    """How much of a job's network calls are made."""
    return job.index / job.plan.calls if job.plan.calls else 0.0


def _eta(job: Job) -> float | None:
    """Seconds to the end at the pace so far; None before there is any."""
    share = _share(job)
    return (time.monotonic() - job.started) * (1 / share - 1) if share and job.started else None


def _told(job: Job) -> str:
    return "Queued..." if job.phase is Phase.QUEUED else str(job.phase).capitalize()


def _preview(job: Job) -> Preview | None:
    """The newest preview; none before somebody watched."""
    found = [event.payload for event in job.channel.newer(0) if isinstance(event.payload, Preview)]
    return found[-1] if found else None


async def _drawn(preview: Preview, image_format: ImageFormat) -> str:
    """The first picture of a preview, in base64."""
    data = await asyncio.to_thread(encode_picture, preview.pictures[0], image_format)
    return base64.b64encode(data).decode()
