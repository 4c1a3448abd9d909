"""When a refused client shall come again, so that it finds a place then. Plain Python, without a clock.

A refused client is told a time, and a place is kept for it from then on. Those who were told a time before it count
as if they were back and waited: so of a crowd each is told a later time, as far apart as the device takes jobs in, and
they do not come back together. The time until a place is free is the work until then, in network rows, over the
measured rate.

The job at place k of the queue (k = 0, 1, …) starts at the latest when the work of all running jobs and of the k before
it is done: then nothing else is left to run. In a batch it may start earlier.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_RATE_MEMORY: Final = 0.98
# Rates vary: a place that is free a little before it is asked for is kept, one that is not free yet is none.
_MARGIN: Final = 1.15
# How long a place is kept for who was told to come, and how long one is told to wait while no rate is known.
_KEPT_S: Final = 15.0
_UNMEASURED_S: Final = 5
# One in so many places may be kept; the rest is anyone's, lest the device be idle when clients do not come back.
_KEPT_SHARE: Final = 4
# Places that may be kept in all, and for one caller.
_MOST: Final = 1024
_MOST_OF_ONE: Final = 512


class Throughput:
    """Network rows a second, smoothed over rounds: what the device does while it has work, decoding included."""

    def __init__(self) -> None:
        self._rows = self._seconds = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Count a round."""
        self._rows = _RATE_MEMORY * self._rows + rows
        self._seconds = _RATE_MEMORY * self._seconds + seconds

    @property
    def rate(self) -> float | None:
        """None before anything was measured."""
        return self._rows / self._seconds if self._rows and self._seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Load:
    """What a job brings.

    Attributes:
        caller: Who asks.
        rows: Network rows of each of its steps.
        weight: Bytes that it holds while it waits.
        work: Network rows still to compute.
    """

    caller: str
    rows: int
    weight: int
    work: int


@dataclass(frozen=True, slots=True)
class Room:
    """How much may wait and run.

    Attributes:
        jobs: Waiting jobs.
        rows: Their rows.
        weight: Their bytes.
        running_rows: Rows of the running jobs.
        caller_jobs: Waiting and running jobs of the one caller that is looked at.
    """

    jobs: int
    rows: int
    weight: int
    running_rows: int
    caller_jobs: int

    def without(self, kept: Sequence[Load], caller: str) -> "Room":
        """What is left beside the places that are kept for others, of which there are at most a share of all.

        Args:
            kept: The jobs for which places are kept.
            caller: The one that is looked at.
        """
        own = sum(load.caller == caller for load in kept)
        return Room(
            jobs=self.jobs - min(len(kept), self.jobs // _KEPT_SHARE),
            rows=self.rows - min(sum(load.rows for load in kept), self.rows // _KEPT_SHARE),
            weight=self.weight - min(sum(load.weight for load in kept), self.weight // _KEPT_SHARE),
            running_rows=self.running_rows,
            caller_jobs=self.caller_jobs - min(own, self.caller_jobs // _KEPT_SHARE),
        )


@dataclass(frozen=True, slots=True)
class Promise:
    """A place that is kept.

    Attributes:
        number: Counts up with the refusals; who is refused again keeps its own.
        load: The job that was refused.
        due: From when on there is a place, in seconds.
    """

    number: int
    load: Load
    due: float


class Waitlist:
    """Who was told to come back, and when. Not thread-safe: the engine holds its lock."""

    def __init__(self) -> None:
        self._promises: list[Promise] = []
        self._count = 0
        self._random = random.Random()

    def kept(self, now: float) -> list[Load]:
        """The jobs for which places are kept; those are given up whose client did not come."""
        self._promises = [promise for promise in self._promises if now <= promise.due + _KEPT_S]
        return [promise.load for promise in self._promises]

    def due(self, caller: str, now: float) -> Promise | None:
        """The place that is kept for a caller who comes now; None for one who comes early or was told nothing."""
        return next((p for p in self._promises if p.load.caller == caller and p.due <= now), None)

    def settle(self, caller: str) -> None:
        """A caller got in: the earliest place that was kept for it is no longer."""
        own = [promise for promise in self._promises if promise.load.caller == caller]
        if own:
            self._promises.remove(own[0])

    def refuse(
        self,
        load: Load,
        former: Promise | None,
        running: Sequence[Load],
        waiting: Sequence[Load],
        room: Room,
        rate: float | None,
        now: float,
    ) -> float:
        """Keep a place for a job that is refused.

        Args:
            load: The job.
            former: The place that was kept for it, if it was refused before and came when it was told to.
            running: The jobs that run.
            waiting: The jobs that wait, in their order.
            room: How much may wait and run.
            rate: Network rows a second; None where it is not known.
            now: In seconds.

        Returns:
            In how many seconds the place will be free, a whole number.
        """
        number = self._count if former is None else former.number
        before = self._before(number, load.caller, room.caller_jobs)
        if rate is None:
            wait_s = _UNMEASURED_S + len(before)
        else:
            work = work_before(load, running, [*waiting, *before], room)
            wait_s = max(1, math.ceil(_MARGIN * work / rate))
        if former is not None:
            self._promises.remove(former)
        own = sum(promise.load.caller == load.caller for promise in self._promises)
        if len(self._promises) >= _MOST or own >= _MOST_OF_ONE:
            # No place can be kept: who comes beyond that is at least not sent back to the same moment.
            return math.ceil(self._random.uniform(wait_s, 2 * wait_s))
        self._count += former is None
        self._promises.append(Promise(number, load, now + wait_s))
        self._promises.sort(key=lambda promise: promise.number)
        return wait_s

    def _before(self, number: int, caller: str, most: int) -> list[Load]:
        """The jobs that were refused before, of each other caller no more than it may have at once."""
        seen: Counter[str] = Counter()
        found = []
        for promise in self._promises:
            other = promise.load.caller
            if promise.number < number and (other == caller or seen[other] < most):
                seen[other] += 1
                found.append(promise.load)
        return found


def work_before(load: Load, running: Sequence[Load], ahead: Sequence[Load], room: Room) -> int:
    """Network rows that must be computed until a job finds a place.

    Args:
        load: The job.
        running: The jobs that run.
        ahead: The jobs that wait or will, in their order.
        room: How much may wait and run.
    """
    begun = sum(each.work for each in running)
    return max(_until_it_fits(load, begun, ahead, room), _until_own_are_done(load.caller, running, begun, ahead, room))


def _until_it_fits(load: Load, begun: int, ahead: Sequence[Load], room: Room) -> int:
    """Until so many have left the queue that the job fits."""
    rows, weight = sum(each.rows for each in ahead), sum(each.weight for each in ahead)
    work, before = 0, begun
    for left, first in enumerate(ahead):
        jobs_fit = len(ahead) - left < room.jobs
        if jobs_fit and rows + load.rows <= room.rows and (not load.weight or weight + load.weight <= room.weight):
            return work
        # The next one leaves: work is what must be done until it does.
        work, before = before, before + first.work
        rows, weight = rows - first.rows, weight - first.weight
    return work


def _until_own_are_done(caller: str, running: Sequence[Load], begun: int, ahead: Sequence[Load], room: Room) -> int:
    """Until so many of the caller's own jobs are done that it may have one more."""
    own = sum(each.caller == caller for each in (*running, *ahead))
    too_many = own + 1 - room.caller_jobs - sum(each.caller == caller for each in running)
    if own < room.caller_jobs:
        return 0
    if too_many <= 0:
        return begun
    # Until the last of those that must be done, with all that may share the device with it.
    places = [place for place, each in enumerate(ahead) if each.caller == caller]
    last = places[too_many - 1]
    return begun + sum(each.work for each in (*ahead[: last + 1], *_companions(ahead[last + 1 :], room.running_rows)))


def _companions(after: Iterable[Load], rows: int) -> list[Load]:
    """The jobs that run along: the next ones, up to so many rows."""
    along = []
    for each in after:
        rows -= each.rows
        if rows < 0:
            break
        along.append(each)
    return along
