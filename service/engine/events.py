"""What a job tells those who listen, without ever waiting for them.

A channel keeps only the newest event of each kind. A listener remembers the last event that it saw and, when it is
ready for more, takes what is newer. So no buffer grows, a slow reader sees the newest progress and skips the rest, the
terminal event is never lost, and whoever comes back with the id of the last event that it saw goes on from there.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

_START: Final = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        id: Counts up within a job, from 1.
        kind: "queued", "progress", "preview", "completed", "failed" or "cancelled".
        payload: What goes with it; the HTTP layer knows how to write it.
        last: Whether nothing comes after it.
    """

    id: int
    kind: str
    payload: object
    last: bool


class Channel:
    """The events of one job. Published from any thread, read from any event loop.

    Args:
        after: The first event's id is one more.

    Attributes:
        attended: Whether somebody in another process wants to hear what is told.
    """

    def __init__(self, after: int = _START) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, Event] = {}
        self._count = after
        self._closed = False
        self._wakers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.attended = False

    @property
    def watched(self) -> bool:
        """Whether anybody listens, or attends from elsewhere: what is costly to tell is told only then."""
        return self.attended or bool(self._wakers)

    def publish(self, kind: str, payload: object, *, last: bool = False, number: int = 0) -> None:
        """Tell the listeners. After the last event there is none: further ones are dropped.

        Args:
            kind: As :class:`Event` has it.
            payload: What goes with it.
            last: Whether nothing comes after it.
            number: Its id, where another channel of the job gave it one; not below what is next here.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = last
            self._count = max(self._count + 1, number)
            self._newest[kind] = Event(self._count, kind, payload, last)
        self._wake()

    def close(self) -> None:
        """Tell nothing further: whoever listens is let go without a last event."""
        with self._lock:
            self._closed = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            wakers = list(self._wakers)
        for loop, event in wakers:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # that loop has ended; its listener went with it
                continue

    def newer(self, than: int) -> list[Event]:
        """The newest event of each kind that came after the event ``than``, oldest first."""
        with self._lock:
            return sorted((e for e in self._newest.values() if e.id > than), key=lambda e: e.id)

    async def listen(self, after: int = _START) -> AsyncIterator[Event]:
        """The events after ``after`` as they come, up to the last one; all of them where ``after`` is yet to come."""
        after = after if after <= self._count else _START
        wake = asyncio.Event()
        waker = (asyncio.get_running_loop(), wake)
        with self._lock:
            self._wakers.add(waker)
        try:
            while True:
                wake.clear()
                for event in self.newer(after):
                    after = event.id
                    yield event
                    if event.last:
                        return
                if self._closed and not self.newer(after):
                    return
                await wake.wait()
        finally:
            with self._lock:
                self._wakers.discard(waker)
