"""Waiting for an event for a while."""

import asyncio

import pytest

from service.tasks import happens
from tests.waits import soon


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_event_that_comes_in_time_and_one_that_does_not():
    async def play():
        event = asyncio.Event()
        assert not await happens(event, 0.01)
        asyncio.get_running_loop().call_soon(event.set)
        assert await happens(event, 5)
        assert await happens(event, 0)

    soon(play())


@pytest.mark.parametrize("count", range(5))
def test_who_is_cancelled_as_the_event_comes_is_cancelled(count):
    async def play():
        event = asyncio.Event()
        waiting = asyncio.create_task(happens(event, 5))
        await turns(3)
        event.set()
        await turns(count)
        was_done = waiting.done()
        waiting.cancel()
        (ended,) = await asyncio.gather(waiting, return_exceptions=True)
        assert ended is True if was_done else isinstance(ended, asyncio.CancelledError)

    soon(play())
