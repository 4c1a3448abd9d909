"""The job that an Idempotency-Key stands for."""

from collections.abc import Awaitable, Callable

from service.registry import Record
from service.services import Services


async def claimed(
    services: Services, caller: str, key: str | None, asked: str, take_in: Callable[[], Awaitable[Record]]
) -> Record:
    """The job of a request: the one that its key stands for already, else a new one.

    Args:
        services: The application's parts.
        caller: Who sends the key.
        key: As it was sent; None for a request without one, which is always new.
        asked: All that the request asks for.
        take_in: Takes the request in and returns its record.

    Raises:
        IdempotencyError: The key stands for something else, or its first request is not yet taken in.
    """
    if key is None:
        return await take_in()
    with services.keys.claim(caller, key, asked) as claim:
        if claim.record is None:
            claim.record = await take_in()
        return claim.record
