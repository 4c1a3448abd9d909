"""Waiting in tests, with a limit of its own: what never comes fails its test in seconds, not the suite in minutes."""

import asyncio
import time

LIMIT_S = 10.0
# What processes on a busy machine may take.
LONG_S = 120.0


def soon(coroutine, within_s=LIMIT_S):
    """What a coroutine gives, in an event loop of its own; TimeoutError where it does not in time."""

    async def limited():
        return await asyncio.wait_for(coroutine, within_s)

    return asyncio.run(limited())


def until(reached, within_s=LONG_S, every_s=0.02):
    """What reached() gives as soon as that is true; AssertionError where it is not in time."""
    end = time.monotonic() + within_s
    while not (found := reached()):
        assert time.monotonic() < end, f"not reached within {within_s} s"
        time.sleep(every_s)
    return found
