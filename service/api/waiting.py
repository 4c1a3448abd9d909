"""Jobs that are over, and waiting for those that are not while their client may go away."""

import asyncio
from http import HTTPStatus
from typing import Final

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from service.api.answers import job_path
from service.engine.engine import Engine
from service.engine.job import Job, Outcome, Phase

_CLIENT_CLOSED_REQUEST: Final = 499


async def when_over(job: Job) -> None:
    """Wait until a job is over, however it ends."""
    over = asyncio.wrap_future(job.result)
    await asyncio.wait([over])
    if not over.cancelled():
        over.exception()  # looked at, so that asyncio does not report it as forgotten


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


def drawn_outcome(job: Job, what: str) -> Outcome:
    """The outcome of a completed composition.

    Args:
        job: The job.
        what: What of it is asked for.

    Raises:
        HTTPException: 404 for a job that draws nothing, 409 for one that is not completed.
    """
    if job.plan.retrace:
        detail = f"this is a density job: it has no {what}; GET {job_path(job)} tells its result"
        raise HTTPException(HTTPStatus.NOT_FOUND, detail)
    if job.phase is not Phase.COMPLETED:
        raise HTTPException(HTTPStatus.CONFLICT, f"this job is {job.phase}, not completed")
    return job.result.result()


def abandoned() -> Response:
    """The answer that nobody reads any more."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
