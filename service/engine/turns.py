"""In which order waiting jobs run: by aged priority, then callers in turn, then age. Pure, for the queue of one engine
(:mod:`service.engine.scheduler`) and for the one that many workers share (:mod:`service.store`).
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

Rank = tuple[int, int, float]
"""Smaller runs earlier."""


class Waiting(Protocol):
    """What the order depends on."""

    @property
    def caller(self) -> str:
        """Who asked."""
        ...

    @property
    def priority(self) -> int:
        """0 to 9; higher runs earlier."""
        ...

    @property
    def submitted(self) -> float:
        """When it came, in seconds."""
        ...


W = TypeVar("W", bound=Waiting)


def rank(job: Waiting, served: Mapping[str, int], now: float, ageing_s: float) -> Rank:
    """What orders waiting jobs: highest aged priority, then the caller served longest ago, then age.

    Ageing has no end: a job that waited long enough stands above the highest priority that newcomers can ask for.

    Args:
        job: The job.
        served: Caller → when it was last served, as a count of admissions; absent for never.
        now: In seconds, on the clock of ``submitted``.
        ageing_s: Seconds of waiting that count as one priority.
    """
    aged = job.priority + int(max(0.0, now - job.submitted) / ageing_s)
    return -aged, served.get(job.caller, 0), job.submitted


def in_turn(
    queues: Iterable[Iterable[W]], served: Mapping[str, int], admissions: int, now: float, ageing_s: float
) -> Iterator[W]:
    """The jobs in the order in which they run if no others come.

    Args:
        queues: The jobs of one caller and priority each, first come first; none is empty.
        served: As :func:`rank` has it.
        admissions: The highest count so far.
        now: As :func:`rank` has it.
        ageing_s: As :func:`rank` has it.
    """
    served = dict(served)
    iterators = [iter(queue) for queue in queues]
    # A heap of the queues' heads. Serving a caller lowers its other queues; those are found out of place when they
    # come up, and put back: ranks only ever fall, so none can be missed.
    entries: list[tuple[Rank, int, W]] = []
    for place, queue in enumerate(iterators):
        head = next(queue)
        entries.append((rank(head, served, now, ageing_s), place, head))
    heapq.heapify(entries)
    while entries:
        former, place, head = heapq.heappop(entries)
        if (current := rank(head, served, now, ageing_s)) != former:
            heapq.heappush(entries, (current, place, head))
            continue
        yield head
        admissions += 1
        served[head.caller] = admissions
        if (following := next(iterators[place], None)) is not None:
            heapq.heappush(entries, (rank(following, served, now, ageing_s), place, following))
