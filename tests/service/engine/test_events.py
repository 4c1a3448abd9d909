import asyncio

import pytest

from service.engine.events import Channel
from tests.waits import LIMIT_S, soon


def told(events):
    return [(event.kind, event.payload) for event in events]


async def everything(channel, after=0):
    return [event async for event in channel.listen(after)]


def test_a_listener_hears_everything_that_it_is_quick_enough_for():
    async def scene():
        channel = Channel()
        listener = asyncio.create_task(everything(channel))
        for kind, payload, last in (
            ("queued", 1, False),
            ("progress", 1, False),
            ("progress", 2, False),
            ("completed", 3, True),
        ):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.to_thread(channel.publish, kind, payload, last=last)
            await asyncio.sleep(0.01)
        return await listener

    heard = soon(scene())
    assert told(heard) == [("queued", 1), ("progress", 1), ("progress", 2), ("completed", 3)]
    assert [event.id for event in heard] == [1, 2, 3, 4]


def test_a_slow_reader_gets_the_newest_progress_and_always_the_end():
    async def scene():
        channel = Channel()
        channel.publish("queued", 0)
        stream = channel.listen()
        first = await anext(stream)
        for k in range(1000):
            channel.publish("progress", k)
        channel.publish("failed", "why", last=True)
        return [first, *[event async for event in stream]]

    assert told(soon(scene())) == [("queued", 0), ("progress", 999), ("failed", "why")]


def test_whoever_comes_back_goes_on_from_the_last_event_that_it_saw():
    channel = Channel()
    channel.publish("queued", 0)
    channel.publish("progress", 1)
    seen = channel.newer(0)[-1].id
    channel.publish("progress", 2)
    channel.publish("completed", "done", last=True)
    assert told(soon(everything(channel, seen))) == [("progress", 2), ("completed", "done")]
    assert soon(everything(channel, seen + 2)) == []


def test_nothing_comes_after_the_end():
    channel = Channel()
    channel.publish("cancelled", None, last=True)
    channel.publish("progress", 1)
    channel.publish("completed", 1, last=True)
    assert told(soon(everything(channel))) == [("cancelled", None)]


def test_a_channel_is_watched_while_somebody_listens():
    async def scene():
        channel = Channel()
        before = channel.watched
        listener = asyncio.create_task(everything(channel))
        await asyncio.sleep(0.01)
        during = channel.watched
        listener.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listener
        return before, during, channel.watched

    assert soon(scene()) == (False, True, False)


def test_a_listener_whose_loop_has_ended_disturbs_nobody():
    channel = Channel()
    loop = asyncio.new_event_loop()
    stream = channel.listen()
    channel.publish("queued", 0)
    loop.run_until_complete(asyncio.wait_for(anext(stream), LIMIT_S))
    loop.close()
    channel.publish("completed", 1, last=True)
    assert told(soon(everything(channel))) == [("queued", 0), ("completed", 1)]
