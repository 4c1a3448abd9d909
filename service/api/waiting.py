"""Waiting for a job while its client may go away."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from fastapi import Request, Response

from service.backend import Backend
from service.engine.job import Job, Outcome

_CLIENT_CLOSED_REQUEST: Final = 499
T = TypeVar("T")


async def when_over(job: Job, timeout_s: float | None = None) -> None:
    """Wait until a job is over, however it ends, or until the time is; None for any time."""
    over = asyncio.wrap_future(job.result)
    await asyncio.wait([over], timeout=timeout_s)
    if over.done() and not over.cancelled():
        over.exception()  # looked at, so that asyncio does not report it as forgotten


async def await_outcome(job: Job, request: Request, backend: Backend | None) -> Outcome | None:
    """The job's outcome; None for a client that goes away, and the job is cancelled if who computes it is given."""
    over = asyncio.create_task(when_over(job))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([over, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if backend is not None and not job.result.done():
            backend.cancel(job)
    return job.result.result() if job.result.done() else None


async def until_left(events: AsyncIterator[T], job: Job, backend: Backend | None) -> AsyncIterator[T]:
    """A job's events; a client that leaves before the last cancels the job if who computes it is given."""
    try:
        async for event in events:
            yield event
    finally:
        if backend is not None:
            backend.cancel(job)


def abandoned() -> Response:
    """The answer that nobody reads any more."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
