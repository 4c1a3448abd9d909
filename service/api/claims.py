"""Idempotency-Key for every dialect: one job for a key, however often its request comes."""

import hashlib
from collections.abc import Callable
from typing import Annotated

from fastapi import Header

from service.callers import Caller
from service.store.records import Idempotency

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Of the client's choice: the same request with the same key gets the same job, also after a "
        "restart of the service, and the job outlives the connection.",
    ),
]


def idempotency(key: str | None, caller: Caller, asked: Callable[[], str]) -> Idempotency | None:
    """What makes a request that is sent twice one job; None without a key.

    Keys are a session's own: two programs of one caller that name themselves may choose the same.

    Args:
        key: The Idempotency-Key, if the request has one.
        caller: Who sends it.
        asked: Gives all that the request asks for.
    """
    if key is None:
        return None
    own = key if caller.label is None else f"{caller.label}\n{key}"
    return Idempotency(own, hashlib.sha256(asked().encode()).hexdigest())
