"""Waiting in tests, with a limit of its own: what never comes fails its test in seconds, not the suite in minutes."""

import asyncio

LIMIT_S = 10.0


def soon(coroutine, within_s=LIMIT_S):
    """What a coroutine gives, in an event loop of its own; TimeoutError where it does not in time."""

    async def limited():
        return await asyncio.wait_for(coroutine, within_s)

    return asyncio.run(limited())
