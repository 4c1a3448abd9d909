"""Tasks that nobody awaits one by one: held here until they are done, as asyncio itself holds them only weakly."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any


class Tasks:
    """The tasks that run now; iterating gives those."""

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
