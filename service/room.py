"""Bytes that requests share while they are read: who finds too little waits in line."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Final


class Room:
    """So many bytes, given out first come, first served. For the event loop's thread alone.

    Args:
        size: How many bytes there are. Who asks for more gets all of them, alone.
    """

    def __init__(self, size: int) -> None:
        self._size: Final = size
        self._taken = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """How many bytes are given out."""
        return self._taken

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold bytes for a while, as soon as those that came earlier have theirs."""
        size = min(size, self._size)
        await self._enter(size)
        try:
            yield
        finally:
            self._leave(size)

    async def _enter(self, size: int) -> None:
        if not self._line and self._taken + size <= self._size:
            self._taken += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(size)
            else:
                self._line.remove((size, turn))
                self._admit()
            raise

    def _leave(self, size: int) -> None:
        self._taken -= size
        self._admit()

    def _admit(self) -> None:
        """Let in who is first in the line, and those behind it, while there is room."""
        while self._line and self._taken + self._line[0][0] <= self._size:
            size, turn = self._line.popleft()
            if turn.cancelled():
                continue
            self._taken += size
            turn.set_result(None)
