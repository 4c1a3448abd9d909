"""Bytes that several tasks share."""

import asyncio

import pytest

from service.room import Room
from tests.waits import soon


def arrive(room, size, inside, name, go):
    async def stay():
        async with room.hold(size):
            inside.append(name)
            await go[name].wait()
        inside.remove(name)

    return asyncio.create_task(stay())


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_finds_too_little_waits_and_nobody_is_overtaken():
    async def scene():
        room, inside, go = Room(10), [], {name: asyncio.Event() for name in "abcd"}
        tasks = [arrive(room, size, inside, name, go) for name, size in zip("abcd", (6, 6, 3, 2), strict=True)]
        await settled()
        assert inside == ["a"]
        go["a"].set()
        await settled()
        assert inside == ["b", "c"]
        assert room.taken == 9
        for each in go.values():
            each.set()
        await asyncio.gather(*tasks)
        return room.taken

    assert soon(scene()) == 0


def test_who_asks_for_more_than_there_is_gets_all_of_it_alone():
    async def scene():
        room, inside, go = Room(10), [], {name: asyncio.Event() for name in "ab"}
        tasks = [arrive(room, 99, inside, "a", go), arrive(room, 1, inside, "b", go)]
        await settled()
        assert (inside, room.taken) == (["a"], 10)
        go["a"].set()
        go["b"].set()
        await asyncio.gather(*tasks)
        return room.taken

    assert soon(scene()) == 0


@pytest.mark.parametrize("late", [False, True])
def test_who_leaves_the_line_lets_the_others_in(late):
    """Also where the turn came just before."""

    async def scene():
        room, inside, go = Room(10), [], {name: asyncio.Event() for name in "abc"}
        a, b, c = (arrive(room, size, inside, name, go) for name, size in zip("abc", (8, 8, 2), strict=True))
        await settled()
        if late:
            go["a"].set()
            await asyncio.sleep(0)
        b.cancel()
        await settled()
        assert inside == ["c"] if late else ["a", "c"]
        for each in go.values():
            each.set()
        await asyncio.wait([a, b, c])
        return room.taken

    assert soon(scene()) == 0
