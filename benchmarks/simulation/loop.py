"""Virtual time: what happens when, in order."""

import heapq
import math
from collections.abc import Callable
from typing import Any


class Loop:
    """Calls functions at their times; of the same time, first come first.

    Attributes:
        now: The time, in seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when: float, act: Callable[..., None], *given: Any) -> None:
        """Call a function at a time that is not past."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, act, given))

    def after(self, seconds: float, act: Callable[..., None], *given: Any) -> None:
        """Call a function in so many seconds."""
        self.at(self.now + seconds, act, *given)

    def run(self, until: float = math.inf) -> None:
        """Go on until nothing is left, or until a time."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, act, given = heapq.heappop(events)
            act(*given)
