"""A store in this process's memory, for tests and simulations: what it knows ends with the process."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from service.store import moves
from service.store.moves import Candidate, Entry
from service.store.port import (
    REMEMBERED_S,
    JobExistsError,
    KeyTakenError,
    LostLeaseError,
    Rules,
    Topic,
    UnknownJobError,
)
from service.store.records import (
    Backlog,
    Checkpoint,
    Claim,
    Ending,
    Filters,
    Glance,
    JobRecord,
    JobState,
    Lease,
    Page,
    Presence,
    Progress,
    Renewal,
    Wants,
    cursor_of,
    place_of,
)
from service.tasks import happens


class LocalBell:
    """A bell within one process.

    Args:
        topics: What it rings for; none for everything.
    """

    def __init__(self, topics: Collection[Topic] = ()) -> None:
        self.topics = frozenset(topics or Topic)
        self._rung = asyncio.Event()

    def hears(self, topics: Collection[Topic]) -> bool:
        """Whether it rings for one of these, or for everything where there are none."""
        return not topics or not self.topics.isdisjoint(topics)

    def ring(self) -> None:
        """Wake who waits, or the next who does."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring since the last call; False where none came in time."""
        rung = await happens(self._rung, timeout_s)
        self._rung.clear()
        return rung


class MemoryStore:
    """See :class:`service.store.port.Store`. No method gives up the event loop, so each is one transaction.

    Args:
        rules: What all who share the store agree on.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._entries: dict[str, Entry] = {}
        # Caller → when it was last served, as a count of claims.
        self._served: dict[str, int] = {}
        self._bells: set[LocalBell] = set()
        # Job → until when it is watched, and what was told of it.
        self._watched: dict[str, float] = {}
        self._told: dict[str, Progress] = {}
        self._present: dict[str, Presence] = {}

    async def add(
        self, record: JobRecord, lease_to: str | None = None, watched_until: float | None = None
    ) -> Lease | None:
        """Accept a new job."""
        if record.id in self._entries:
            raise JobExistsError(record.id)
        if record.key is not None and (winner := self._winner(record.caller, record.key)) is not None:
            raise KeyTakenError(winner)
        entry = Entry(record)
        if lease_to is not None:
            entry = moves.taken(entry, lease_to, record.created, self._rules)
        self._entries[record.id] = entry
        if watched_until is not None:
            self._watched[record.id] = watched_until
        self._ring(Topic.WORK)
        return None if lease_to is None else entry.claim.lease

    async def standing(self, caller: str, key: str) -> JobRecord | None:
        """The job that a caller's idempotency key stands for."""
        return self._winner(caller, key)

    async def get(self, job_id: str) -> JobRecord:
        """A job as it stands."""
        return self._entry(job_id).record

    async def page(self, filters: Filters | None = None, cursor: str | None = None, limit: int = 100) -> Page:
        """Jobs, newest first."""
        before = None if cursor is None else place_of(cursor)
        wanted = filters or Filters()
        found = [entry.record for entry in self._entries.values() if _shown(entry.record, wanted)]
        found.sort(key=lambda record: (record.created, record.id), reverse=True)
        if before is not None:
            found = [record for record in found if (record.created, record.id) < before]
        shown = tuple(found[:limit])
        return Page(shown, cursor_of((shown[-1].created, shown[-1].id)) if len(found) > limit else None)

    async def backlog(self, caller: str) -> Backlog:
        """What waits, and how many jobs the caller has."""
        waiting = [entry.record for entry in self._entries.values() if entry.waiting]
        own = sum(entry.record.caller == caller and not entry.record.state.over for entry in self._entries.values())
        rows, work = sum(each.rows for each in waiting), sum(each.rows * each.steps for each in waiting)
        deadlines = [record.deadline for record in waiting if record.deadline is not None]
        weight = sum(record.weight for record in waiting)
        return Backlog(len(waiting), rows, work, own, min(deadlines, default=None), weight)

    async def order(self, now: float, limit: int = 1000) -> tuple[str, ...]:
        """The ids of the waiting jobs in the order in which they will be claimed."""
        return tuple(each.id for each in self._in_order(now))[:limit]

    async def claim(self, worker: str, wants: Wants, now: float) -> list[Claim]:
        """Take the next waiting jobs."""
        self._reap(now)
        claims = []
        for each in moves.fitting(self._in_order(now, wants), wants):
            entry = self._entries[each.id] = moves.taken(self._entries[each.id], worker, now, self._rules)
            self._served[each.caller] = self._admissions + 1
            watched = self._watched.get(each.id, now) > now
            claims.append(replace(entry.claim, watched=watched))
        return claims

    async def renew(self, leases: Sequence[Lease], now: float, steps: Mapping[str, int] | None = None) -> Renewal:
        """A heartbeat."""
        kept, lost, cancel = [], set(), set()
        for lease in leases:
            try:
                entry = self._held(lease)
            except LostLeaseError:
                lost.add(lease.job_id)
                continue
            record = replace(entry.record, step=(steps or {}).get(lease.job_id, entry.record.step))
            entry = self._entries[lease.job_id] = replace(entry, record=record, expires=now + self._rules.lease_s)
            kept.append(entry.claim.lease)
            if record.cancel_requested:
                cancel.add(lease.job_id)
        watched = frozenset(lease.job_id for lease in kept if self._watched.get(lease.job_id, now) > now)
        return Renewal(tuple(kept), frozenset(lost), frozenset(cancel), watched)

    async def start(self, lease: Lease, now: float) -> JobRecord:
        """The job runs."""
        return self._put(moves.started(self._held(lease), now), Topic.NEWS)

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> JobRecord:
        """The next attempt can go on here."""
        return self._put(moves.checkpointed(self._held(lease), checkpoint))

    async def finish(self, lease: Lease, ending: Ending, now: float) -> JobRecord:
        """The job is over."""
        return self._put(moves.finished(self._held(lease), ending, now), Topic.NEWS)

    async def release(self, lease: Lease, now: float) -> JobRecord:
        """Give a job back."""
        return self._put(moves.released(self._held(lease), now), *Topic)

    async def request_cancel(self, job_id: str, now: float) -> JobRecord:
        """Cancel a job, or ask its worker to."""
        return self._put(moves.cancel_asked(self._entry(job_id), now), *Topic)

    async def take_messages(self, now: float, held_s: float, limit: int) -> list[JobRecord]:
        """Jobs that are over and of which a message is due."""
        due = sorted(
            (entry.record.message.due or 0.0, entry.record.id)
            for entry in self._entries.values()
            if entry.record.message is not None and moves.owed(entry, now)
        )
        return [self._put(moves.sending(self._entries[job_id], now, held_s)) for _, job_id in due[:limit]]

    async def note_message(self, job_id: str, tries: int, due: float | None, outcome: str | None = None) -> None:
        """Note how a try went."""
        if job_id in self._entries:
            self._put(moves.noted(self._entries[job_id], tries, due, outcome))

    async def reap(self, now: float) -> list[JobRecord]:
        """Free the jobs of expired leases, and end what nobody may work on any more."""
        return self._reap(now)

    async def expired(self, before: float, limit: int = 1000) -> list[JobRecord]:
        """Jobs that ended before a time, the longest ended first."""
        records = (entry.record for entry in self._entries.values())
        ended = [(record.ended, record.id, record) for record in records if record.ended is not None]
        return [record for end, _, record in sorted(ended, key=lambda each: each[:2]) if end < before][:limit]

    async def delete(self, job_ids: Collection[str]) -> int:
        """Forget jobs that are over."""
        over = [
            job_id for job_id in set(job_ids) if job_id in self._entries and self._entries[job_id].record.state.over
        ]
        for job_id in over:
            del self._entries[job_id]
            self._watched.pop(job_id, None)
            self._told.pop(job_id, None)
        callers = {entry.record.caller for entry in self._entries.values()}
        self._served = {caller: count for caller, count in self._served.items() if caller in callers}
        return len(over)

    async def references(self) -> set[str]:
        """Every content address that some job refers to."""
        return {address for entry in self._entries.values() for address in entry.record.addresses}

    async def watch(self, job_ids: Collection[str], until: float) -> None:
        """Ask the workers of these jobs to tell of their progress."""
        for job_id in [each for each, end in self._watched.items() if end < until - REMEMBERED_S]:
            self._watched.pop(job_id)
            self._told.pop(job_id, None)
        for job_id in job_ids:
            if job_id in self._entries and not self._entries[job_id].record.state.over:
                self._watched[job_id] = max(until, self._watched.get(job_id, until))
        self._ring(Topic.WORK)

    async def tell(self, progress: Sequence[Progress]) -> None:
        """Replace what was told of these jobs."""
        for each in progress:
            known = self._told.get(each.job_id)
            if each.job_id in self._watched and (known is None or _age(known) < _age(each)):
                self._told[each.job_id] = each
        self._ring(Topic.NEWS)

    async def glance(self, job_ids: Collection[str]) -> dict[str, Glance]:
        """How these jobs stand."""
        found = {job_id: self._entries[job_id].record for job_id in job_ids if job_id in self._entries}
        return {
            job_id: Glance(record.state, record.step, record.attempts, self._told.get(job_id))
            for job_id, record in found.items()
        }

    async def report(self, presence: Presence) -> None:
        """A worker tells of itself."""
        self._present[presence.worker] = presence

    async def leave(self, worker: str) -> None:
        """A worker is there no more."""
        self._present.pop(worker, None)

    async def present(self, since: float) -> list[Presence]:
        """The workers that have told of themselves since a time."""
        self._present = {worker: each for worker, each in self._present.items() if each.seen >= since}
        return [self._present[worker] for worker in sorted(self._present)]

    @asynccontextmanager
    async def listen(self, *topics: Topic) -> AsyncIterator[LocalBell]:
        """A bell of one's own."""
        bell = LocalBell(topics)
        self._bells.add(bell)
        try:
            yield bell
        finally:
            self._bells.discard(bell)

    async def wake(self, *topics: Topic) -> None:
        """Ring the bells."""
        self._ring(*topics)

    async def close(self) -> None:
        """Nothing is held."""

    @property
    def _admissions(self) -> int:
        return max(self._served.values(), default=0)

    def _entry(self, job_id: str) -> Entry:
        if job_id not in self._entries:
            raise UnknownJobError(job_id)
        return self._entries[job_id]

    def _held(self, lease: Lease) -> Entry:
        return moves.held(self._entries.get(lease.job_id), lease)

    def _put(self, entry: Entry, *topics: Topic) -> JobRecord:
        self._entries[entry.record.id] = entry
        if topics:
            self._ring(*topics)
        return entry.record

    def _ring(self, *topics: Topic) -> None:
        for bell in self._bells:
            if bell.hears(topics):
                bell.ring()

    def _winner(self, caller: str, key: str) -> JobRecord | None:
        """The job that a caller's key stands for."""
        for other in (entry.record for entry in self._entries.values()):
            same = (other.caller, other.key) == (caller, key)
            if same and other.state not in {JobState.FAILED, JobState.CANCELLED}:
                return other
        return None

    def _waiting(self, wants: Wants | None = None, now: float = 0.0) -> Iterator[Candidate]:
        for entry in self._entries.values():
            record = entry.record
            if entry.waiting and (wants is None or moves.suits(record.models, record.created, wants, now)):
                yield Candidate(record.id, record.caller, record.priority, record.created, record.rows)

    def _in_order(self, now: float, wants: Wants | None = None) -> Iterator[Candidate]:
        return moves.in_order(self._waiting(wants, now), self._served, self._admissions, now, self._rules)

    def _reap(self, now: float) -> list[JobRecord]:
        moved = [(entry, moves.reaped(entry, now, self._rules)) for entry in self._entries.values()]
        changed = [after for before, after in moved if after is not before]
        for entry in changed:
            self._put(entry, *Topic)
        return [entry.record for entry in changed if entry.record.state.over]


def _age(progress: Progress) -> tuple[int, int]:
    return progress.fence, progress.number


def _shown(record: JobRecord, filters: Filters) -> bool:
    return (
        filters.caller in {None, record.caller}
        and filters.state in {None, record.state}
        and filters.kind in {None, record.kind}
        and filters.label in {None, record.label}
        and not (filters.open and record.state.over)
    )
