"""Tasks that nobody awaits one by one, held until they are done, and waiting for an event for a while."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event; whether it came in time.

    Not by asyncio.wait_for: in Python 3.11 a task that is cancelled at the moment in which the event comes would go on.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


class Tasks:
    """The tasks that run now; iterating gives those. asyncio itself holds them only weakly."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        """Those that run now."""
        return iter(set(self._tasks))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something beside what runs."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
