"""Idempotency-Key for every dialect: one job for a key, however often its request comes."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header

from service.callers import Caller
from service.registry import Record
from service.services import Services

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Of the client's choice: the same request with the same key gets the same job, and the job "
        "outlives the connection.",
    ),
]


async def claimed(
    key: str | None,
    asked: Callable[[], str],
    caller: Caller,
    services: Services,
    submit: Callable[[], Awaitable[Record]],
) -> Record:
    """The job that the key stands for; a new one where it stands for none, or where there is no key.

    Args:
        key: The Idempotency-Key, if the request has one.
        asked: Gives all that the request asks for.
        caller: Who sends it.
        services: The application's parts.
        submit: Queues the request.

    Raises:
        IdempotencyError: The key stands for another request, or its first request is not yet taken in.
    """
    if key is None:
        return await submit()
    with services.keys.claim(caller.session, key, asked()) as claim:
        if claim.record is None:
            claim.record = await submit()
        return claim.record
