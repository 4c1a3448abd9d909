"""Which jobs run: plain Python, so that its rules can be tested without a network and without a clock.

Jobs wait by priority, and within a priority every caller in turn. The next job is fixed by that order alone: a job that
does not fit yet is waited for, never overtaken, so that large jobs cannot starve. A waiting job rises by one priority
every ``ageing_s`` seconds, so that low ones cannot either. A job that fits waits all the same while its rows
would make somebody late who runs (:mod:`service.engine.pace`).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from service.engine.pace import Pace, Paced
from service.engine.turns import Waiting, in_turn, rank
from service.engine.waitlist import Load, Room, Throughput, Waitlist

HIGHEST_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 5


class Runnable(Paced, Waiting, Protocol):
    """What the scheduler knows of a job."""

    @property
    def rows(self) -> int:
        """Network rows at every step."""
        ...

    @property
    def deadline(self) -> float:
        """When it is worthless, in seconds; infinite for never."""
        ...

    @property
    def weight(self) -> int:
        """Bytes that it holds while it waits."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether it is to be dropped."""
        ...


J = TypeVar("J", bound=Runnable)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a scheduler.

    Attributes:
        waiting_jobs: Jobs that may wait.
        waiting_rows: Rows that may wait, all jobs together.
        waiting_bytes: Bytes of known pictures that may wait, all jobs together.
        caller_jobs: Jobs that one caller may have waiting and running.
        running_rows: Rows that may run at once. A job larger than that runs alone.
        ageing_s: Seconds of waiting that count as one priority.
        stretch: How many times as long as by strict first come, first served, each job alone, a job may be made to wait
            by those who share the device with it and are not its equals that came with it; infinite for no bound.
    """

    waiting_jobs: int = 256
    waiting_rows: int = 8192
    waiting_bytes: int = 1 << 30
    caller_jobs: int = 64
    running_rows: int = 96
    ageing_s: float = 30.0
    stretch: float = 2.0

    def room(self, caller_jobs: int | None) -> Room:
        """How much may wait and run, for a caller that may have so many jobs; None for as many as anyone."""
        most = min(self.caller_jobs, caller_jobs or self.caller_jobs)
        return Room(self.waiting_jobs, self.waiting_rows, self.waiting_bytes, self.running_rows, most)


class QueueFullError(Exception):
    """There is no place for a job.

    Attributes:
        waiting: How many jobs wait: the position that the job would have had.
        retry_after_s: When to come again: a place is kept from then on, for a while.
    """

    def __init__(self, detail: str, waiting: int, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.waiting = waiting
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Taken:
    """How much of a room is taken.

    Attributes:
        jobs: Waiting jobs.
        rows: Their rows.
        weight: Their bytes.
        own: Waiting and running jobs of the one caller that is looked at.
    """

    jobs: int
    rows: int
    weight: int
    own: int


def check_room(rows: int, weight: int, taken: Taken, room: Room) -> None:
    """Refuse a job for which there is no room.

    Args:
        rows: Its network rows at every step.
        weight: Bytes that it holds while it waits.
        taken: What is there already.
        room: How much may be.

    Raises:
        QueueFullError: A bound would be passed.
    """
    if taken.jobs >= room.jobs:
        raise QueueFullError(f"{taken.jobs} jobs are waiting already; no more may", taken.jobs)
    # A job too large for an empty queue would never find a place: it may wait alone.
    if taken.jobs and taken.rows + rows > room.rows:
        detail = f"{taken.rows} network rows wait already, this job needs {rows} more, and {room.rows} may wait"
        raise QueueFullError(detail, taken.jobs)
    if taken.jobs and weight and taken.weight + weight > room.weight:
        detail = f"{taken.weight} bytes of pictures wait already, this job brings {weight}; {room.weight} may wait"
        raise QueueFullError(detail, taken.jobs)
    if taken.own >= room.caller_jobs:
        detail = f"this caller has {taken.own} jobs waiting or running, and {room.caller_jobs} are allowed at once"
        raise QueueFullError(detail, taken.jobs)


class Scheduler(Generic[J]):
    """The queue and the running set. Not thread-safe: the engine holds its lock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pace = Pace(limits.stretch)
        # (priority, caller) → its jobs, first come first. Empty queues are removed.
        self._waiting: dict[tuple[int, str], deque[J]] = {}
        self._running: list[J] = []
        # Caller → when it was last served, as a count of admissions.
        self._served: dict[str, int] = {}
        self._admissions = 0
        self._waitlist = Waitlist()
        self._throughput = Throughput()

    @property
    def running(self) -> Sequence[J]:
        """The jobs that take steps."""
        return self._running

    @property
    def waiting(self) -> list[J]:
        """The jobs in the queue, in no order."""
        return [job for queue in self._waiting.values() for job in queue]

    @property
    def limits(self) -> Limits:
        """Its bounds."""
        return self._limits

    @property
    def rate(self) -> float | None:
        """Network rows a second, while there is work; None before anything was measured."""
        return self._throughput.rate

    def submit(self, job: J, caller_jobs: int | None = None, *, bounded: bool = True) -> None:
        """Queue a job; :class:`QueueFullError` where a bound would be passed.

        Args:
            job: The job.
            caller_jobs: Jobs that its caller may have waiting and running; None for as many as anyone.
            bounded: Whether bounds hold for it.
        """
        if bounded:
            self._refuse_excess(job, caller_jobs)
        self._pace.came(job, first=not (self.waiting or self._running))
        self._waiting.setdefault((job.priority, job.caller), deque()).append(job)

    def _refuse_excess(self, job: J, caller_jobs: int | None) -> None:
        """Refuse a job for which there is no place, and say when there will be one."""
        now, waiting, room = job.submitted, self.waiting, self._limits.room(caller_jobs)
        taken = Taken(
            jobs=len(waiting),
            rows=sum(other.rows for other in waiting),
            weight=sum(other.weight for other in waiting),
            own=sum(other.caller == job.caller for other in (*waiting, *self._running)),
        )
        kept, due = self._waitlist.kept(now), self._waitlist.due(job.caller, now)
        try:
            check_room(job.rows, job.weight, taken, room if due else room.without(kept, job.caller))
        except QueueFullError as error:
            running, ahead = map(_load, self._running), map(_load, self.order(now))
            given = _load(job), due, list(running), list(ahead), room
            error.retry_after_s = self._waitlist.refuse(*given, self._throughput.rate, now)
            raise
        self._waitlist.settle(job.caller)

    def admit(self, now: float) -> list[J]:
        """Move the jobs that now fit from the queue to the running set, and return them."""
        admitted = []
        used = sum(job.rows for job in self._running)
        while self._waiting:
            heads = (queue[0] for queue in self._waiting.values())
            job = min(heads, key=lambda head: rank(head, self._served, now, self._limits.ageing_s))
            if self._running and used + job.rows > self._limits.running_rows:
                break
            if not self._pace.may_join(job, self._running):
                break
            self._take(job)
            self._admissions += 1
            self._served[job.caller] = self._admissions
            used += job.rows
            self._running.append(job)
            admitted.append(job)
        if admitted:
            # Whose turn it is matters only among those who wait; others must not be remembered for ever.
            present = {caller for _, caller in self._waiting}
            self._served = {caller: when for caller, when in self._served.items() if caller in present}
        return admitted

    def order(self, now: float) -> list[J]:
        """The waiting jobs in the order in which they would run if no others came."""
        return list(in_turn(self._waiting.values(), self._served, self._admissions, now, self._limits.ageing_s))

    def drop(self, now: float) -> list[J]:
        """Take cancelled and overdue jobs out of the queue and the running set, and return them."""
        gone = [job for job in (*self.waiting, *self._running) if job.cancelled or job.deadline <= now]
        self._remove(gone)
        return gone

    def withdraw(self, job: J) -> bool:
        """Take a job out of the queue; False where it does not wait there."""
        waits = job in self.waiting
        if waits:
            self._remove([job])
        return waits

    def took(self, jobs: Iterable[J], seconds: float) -> None:
        """Learn what a joint step of these jobs took."""
        self._pace.took(jobs, seconds)

    def worked(self, rows: int, seconds: float) -> None:
        """Learn what the device does in a time in which it had work, whatever it did."""
        self._throughput.add(rows, seconds)

    def retire(self, jobs: Iterable[J]) -> None:
        """Take jobs out of the running set."""
        over = set(jobs)
        self._running = [job for job in self._running if job not in over]
        self._forget(over)

    def clear_waiting(self) -> list[J]:
        """Empty the queue, and return what it held."""
        held = self.waiting
        self._waiting.clear()
        self._forget(held)
        return held

    def _remove(self, jobs: Sequence[J]) -> None:
        for job in jobs:
            self._pace.gone(job)
        gone = set(jobs)
        kept = {key: deque(job for job in queue if job not in gone) for key, queue in self._waiting.items()}
        self._waiting = {key: queue for key, queue in kept.items() if queue}
        self.retire(jobs)

    def _forget(self, jobs: Iterable[J]) -> None:
        for job in jobs:
            self._pace.done(job)

    def _take(self, head: J) -> None:
        """Remove the head of a queue, and the queue when that empties it."""
        key = (head.priority, head.caller)
        self._waiting[key].popleft()
        if not self._waiting[key]:
            del self._waiting[key]


def _load(job: Runnable) -> Load:
    """What a job brings."""
    return Load(job.caller, job.rows, job.weight, job.rows * job.left)
