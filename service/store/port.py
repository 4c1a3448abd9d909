"""What a store of jobs is: the one place where a job is accepted, taken, moved on and ended.

Every method is one transaction: it happens as a whole or not at all, and others see it at once. A worker writes with
the fence of its lease and is refused when another one has the job by then; so each job ends once, however many workers
believe that it is theirs. Leases expire by the clock that callers bring along as ``now`` (Unix seconds): clocks that
differ cost work that is done twice, never a wrong result.

A method that raises :class:`StoreUnavailableError` may have happened or not; all of them can be called again.
"""

import errno
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from service.store.records import (
    Backlog,
    Checkpoint,
    Claim,
    Ending,
    Filters,
    Glance,
    JobRecord,
    Lease,
    Page,
    Presence,
    Progress,
    Renewal,
    Wants,
)

REMEMBERED_S: Final = 60.0
"""How long before the latest watch's end a job's last one must have ended for what was told of it to be forgotten."""


class StoreError(Exception):
    """The store did not do what it was asked."""


class UnknownJobError(StoreError):
    """No job of that id, or none any more."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}, or none any more")


class JobExistsError(StoreError):
    """There is a job of that id already."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is a job {job_id!r} already")


class KeyTakenError(StoreError):
    """The caller's idempotency key stands for another job.

    Attributes:
        winner: That job. Whether the request is the same, its digest tells.
    """

    def __init__(self, winner: JobRecord) -> None:
        super().__init__(f"the idempotency key stands for the job {winner.id!r}")
        self.winner = winner


class LostLeaseError(StoreError):
    """The job is not this worker's any more: another one has it, it is over, or it was deleted. Drop it."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"the worker {lease.worker!r} has lost the job {lease.job_id!r}")
        self.lease = lease


class StoreUnavailableError(StoreError):
    """The store cannot be reached now, or is too busy; try again."""


class DiskFullError(StoreError):
    """There is no space left to write; an operator must free some, or keep less."""


NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says of a full disk."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What all who share a store must agree on.

    Attributes:
        lease_s: Seconds until a lease expires that is not renewed. Renew every third of it.
        attempts: How many workers may take a job up before it fails.
        ageing_s: Seconds of waiting that count as one priority.
    """

    lease_s: float = 30.0
    attempts: int = 3
    ageing_s: float = 30.0


class Topic(StrEnum):
    """What a bell tells of."""

    WORK = "work"
    """For workers: a job came, was freed, was asked to be cancelled, or is watched."""
    NEWS = "news"
    """For those who wait for jobs: one moved on, or ended."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a caller has used of its day.

    Attributes:
        used: How much.
        began: When the day began, in Unix seconds: with the first use, or now where nothing was used.
    """

    used: int
    began: float


class Usage(Protocol):
    """What callers have used today; a caller's day begins with its first use."""

    async def spent(self, caller: str, now: float) -> Spent:
        """What a caller has used."""
        ...

    async def spend(self, caller: str, amount: int, quota: int, now: float) -> Spent | None:
        """Use something; None, and nothing is used, where it would be more than the quota in a day."""
        ...

    async def give_back(self, caller: str, amount: int, began: float) -> None:
        """Undo a use of the day that began then."""
        ...


class Bell(Protocol):
    """Tells that something changed, of the topics that it was asked for.

    It only saves waiting: rings may be lost, repeated, or come for nothing. Whoever listens asks the store again, and
    does so every few seconds even without a ring.
    """

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring since the last call; False where none came in time."""
        ...

    def ring(self) -> None:
        """Ring this one alone: something changed here of which the store knows nothing."""
        ...


class Store(Protocol):
    """The jobs of a service."""

    async def add(
        self, record: JobRecord, lease_to: str | None = None, watched_until: float | None = None
    ) -> Lease | None:
        """Accept a new job.

        The idempotency key of a job that failed or was cancelled, or was deleted, is free again.

        Args:
            record: A queued job.
            lease_to: The worker that has it at once, out of turn, from ``created`` on; None to let it wait.
            watched_until: As :meth:`watch` has it; None for not watched.

        Raises:
            KeyTakenError: The caller's key stands for a job. Of any number of calls at once, one wins.
            JobExistsError: The id is taken. Who calls again, as the answer was lost, meets this one, or the other with
                this very job as the winner.
        """
        ...

    async def standing(self, caller: str, key: str) -> JobRecord | None:
        """The job that a caller's idempotency key stands for; None where it is free."""
        ...

    async def get(self, job_id: str) -> JobRecord:
        """A job as it stands; :class:`UnknownJobError` where there is none."""
        ...

    async def page(self, filters: Filters | None = None, cursor: str | None = None, limit: int = 100) -> Page:
        """Jobs, newest first.

        Args:
            filters: Which; None for all.
            cursor: Of the page before; None for the first.
            limit: At most so many.

        Raises:
            CursorError: No page gave that cursor.
        """
        ...

    async def backlog(self, caller: str) -> Backlog:
        """What waits, and how many jobs the caller has."""
        ...

    async def order(self, now: float, limit: int = 1000) -> tuple[str, ...]:
        """The ids of the waiting jobs in the order in which they will be claimed if no others come."""
        ...

    async def claim(self, worker: str, wants: Wants, now: float) -> list[Claim]:
        """Take the next waiting jobs, in the order of :mod:`service.engine.turns`; each counts an attempt.

        The jobs of expired leases are freed before, as :meth:`reap` does. A job that does not fit is not overtaken by
        one behind it: claim again when there is room.

        Args:
            worker: Who takes them.
            wants: How many and which.
            now: In Unix seconds.
        """
        ...

    async def renew(self, leases: Sequence[Lease], now: float, steps: Mapping[str, int] | None = None) -> Renewal:
        """A heartbeat: keep these leases, and learn what became of their jobs.

        A lease that has expired is still kept if nobody took the job.

        Args:
            leases: All that the worker holds.
            now: In Unix seconds.
            steps: Job → network calls made, for those that are to be told.
        """
        ...

    async def start(self, lease: Lease, now: float) -> JobRecord:
        """The job runs.

        Raises:
            LostLeaseError: It is not this worker's any more.
        """
        ...

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> JobRecord:
        """The next attempt can go on here.

        Raises:
            LostLeaseError: It is not this worker's any more.
        """
        ...

    async def finish(self, lease: Lease, ending: Ending, now: float) -> JobRecord:
        """The job is over, whether or not it was asked to be cancelled; its checkpoint is forgotten.

        Raises:
            LostLeaseError: It is not this worker's any more; so too where this is called again as the answer was lost.
        """
        ...

    async def release(self, lease: Lease, now: float) -> JobRecord:
        """Give a job back without counting the attempt; one that was asked to be cancelled is cancelled.

        Raises:
            LostLeaseError: It is not this worker's any more.
        """
        ...

    async def request_cancel(self, job_id: str, now: float) -> JobRecord:
        """Cancel a job that no worker has; ask its worker otherwise. Any number of times, in any state.

        Raises:
            UnknownJobError: There is none of that id.
        """
        ...

    async def take_messages(self, now: float, held_s: float, limit: int) -> list[JobRecord]:
        """Jobs that are over and of which a message is due, the longest due first; each counts a try.

        Args:
            now: In Unix seconds.
            held_s: For so long nobody else gets them; longer than it takes to send one and to note that.
            limit: At most so many.
        """
        ...

    async def note_message(self, job_id: str, tries: int, due: float | None, outcome: str | None = None) -> None:
        """Note how a try went. Nothing happens where another one began since, or where the job is not there any more.

        Args:
            job_id: The job.
            tries: The number of the try, as the record had it.
            due: When it goes out next; None for never again.
            outcome: How it ended, if it did.
        """
        ...

    async def reap(self, now: float) -> list[JobRecord]:
        """Free the jobs of expired leases, and end what nobody may work on any more; those that it ended.

        A freed job that was asked to be cancelled is cancelled; one that is late, or that was tried often enough,
        fails. So does a waiting job that is late. Any process may call it at any time; :meth:`claim` does.
        """
        ...

    async def expired(self, before: float, limit: int = 1000) -> list[JobRecord]:
        """Jobs that ended before a time, the longest ended first."""
        ...

    async def delete(self, job_ids: Collection[str]) -> int:
        """Forget jobs that are over, and their idempotency keys; how many there were. Others are left alone."""
        ...

    async def references(self) -> set[str]:
        """Every content address that some job refers to."""
        ...

    async def watch(self, job_ids: Collection[str], until: float) -> None:
        """Ask the workers of these jobs to tell of their progress; :meth:`renew` brings it to them.

        What was told of jobs that nobody watches any more is forgotten a minute later.

        Args:
            job_ids: Any; those that are over or unknown are passed over.
            until: For how long, in Unix seconds; ask again before.
        """
        ...

    async def tell(self, progress: Sequence[Progress]) -> None:
        """Replace what was told of these jobs, where nothing newer was; a loss hurts nobody."""
        ...

    async def glance(self, job_ids: Collection[str]) -> dict[str, Glance]:
        """How these jobs stand, all at once; those that there are not are left out."""
        ...

    async def report(self, presence: Presence) -> None:
        """A worker tells of itself; what it told before is replaced."""
        ...

    async def leave(self, worker: str) -> None:
        """A worker is there no more."""
        ...

    async def present(self, since: float) -> list[Presence]:
        """The workers that have told of themselves since a time, in the order of their ids; others are forgotten."""
        ...

    def listen(self, *topics: Topic) -> AbstractAsyncContextManager[Bell]:
        """A bell of one's own for these topics, or for all, for as long as the context is open."""
        ...

    async def wake(self, *topics: Topic) -> None:
        """Ring the bells of these topics, or all. Writes that others may wait for do so themselves."""
        ...

    async def close(self) -> None:
        """Give connections back; the store is of no use afterwards."""
        ...
