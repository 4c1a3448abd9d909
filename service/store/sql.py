"""A store in a database: SQLite within one machine, PostgreSQL for many.

A write that concerns one job reads it locked, applies a function of :mod:`service.store.moves`, and writes what has
changed, in one transaction. Claims and heartbeats are a few statements for any number of jobs. SQLite has one writer at
a time; on PostgreSQL claims pass over rows that others are claiming, and so do not wait for one another.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store import moves
from service.store.database import Database, open_database, told, wrapped
from service.store.memory import LocalBell
from service.store.moves import Candidate, Entry
from service.store.port import (
    REMEMBERED_S,
    JobExistsError,
    KeyTakenError,
    LostLeaseError,
    Rules,
    StoreError,
    StoreUnavailableError,
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
    from_plain,
    place_of,
    to_plain,
)
from service.store.schema import JOBS, PROGRESS, TURNS, WORKERS
from service.store.statements import ADD, BACKLOG, CHANNEL, FINISH, GET, GLANCE, NOTIFY, QUEUE, RENEW, START, TAKE

_LOG: Final = logging.getLogger(__name__)
# How often a shared SQLite file is looked at.
_POLL_S: Final = 0.02
# Of waiting jobs, so many more than wanted are put in order as others may be claiming them at the same moment; at each
# further try, as they were faster with all of those.
_SPARE: Final = (4, 32, 128)
_TRIES: Final = 3
_REAPED_AT_ONCE: Final = 500

# Only what is watched has a row to write to.
_OLDER: Final = sa.or_(
    PROGRESS.c.fence.is_(None),
    sa.tuple_(PROGRESS.c.fence, PROGRESS.c.number) < sa.tuple_(sa.bindparam("new_fence"), sa.bindparam("new_number")),
)
_TELLING: Final = (
    sa.update(PROGRESS)
    .where(PROGRESS.c.job_id == sa.bindparam("id"), _OLDER)
    .values(fence=sa.bindparam("new_fence"), number=sa.bindparam("new_number"), told=sa.bindparam("new_told"))
)
_WAITING: Final = sa.and_(JOBS.c.worker.is_(None), JOBS.c.ended.is_(None))
_OPEN: Final = JOBS.c.ended.is_(None)


async def open_sql_store(url: str, rules: Rules | None = None, *, shared: bool = False) -> "SqlStore":
    """The store in a database of its own; see :func:`service.store.database.open_database`."""
    return SqlStore(await open_database(url), rules, shared=shared)


class SqlStore:
    """See :class:`service.store.port.Store`.

    Args:
        database: Closed with this.
        rules: What all who share the store agree on.
        shared: Whether bells ring for other processes' writes to an SQLite file, too.
    """

    def __init__(self, database: Database, rules: Rules | None = None, *, shared: bool = False) -> None:
        self._database, self._rules = database, rules or Rules()
        self._engine, self._writing, self._postgres = database.engine, database.writing, database.postgres
        self._read, self._write = database.read, database.write
        self._bells: set[LocalBell] = set()
        self._shared = shared
        self._polling: asyncio.Task[None] | None = None
        self._closing = False
        self._listener: AsyncConnection | None = None
        self._hearing = False
        self._connecting = asyncio.Lock()

    async def add(
        self, record: JobRecord, lease_to: str | None = None, watched_until: float | None = None
    ) -> Lease | None:
        """Accept a new job."""
        entry = Entry(record)
        if lease_to is not None:
            entry = moves.taken(entry, lease_to, record.created, self._rules)
        for _ in range(_TRIES):
            if await self._added(entry, watched_until):
                break
            async with self._read() as connection:
                await self._refuse(connection, record)
            # Whoever was in the way has gone since.
        else:
            raise StoreUnavailableError("the store is busy with the same key; try again")
        await self._told(Topic.WORK, record)
        return None if lease_to is None else entry.claim.lease

    async def standing(self, caller: str, key: str) -> JobRecord | None:
        """The job that a caller's idempotency key stands for."""
        async with self._read() as connection:
            found = await _entries(connection, _standing(caller, key))
        return found[0].record if found else None

    async def get(self, job_id: str) -> JobRecord:
        """A job as it stands."""
        found = await self._database.one(GET, {"id": job_id})
        if not found:
            raise UnknownJobError(job_id)
        return from_plain(found[0])

    async def page(self, filters: Filters | None = None, cursor: str | None = None, limit: int = 100) -> Page:
        """Jobs, newest first."""
        query = page_query(filters or Filters(), cursor).limit(limit + 1)
        async with self._read() as connection:
            found = await _entries(connection, query)
        shown = tuple(entry.record for entry in found[:limit])
        return Page(shown, cursor_of((shown[-1].created, shown[-1].id)) if len(found) > limit else None)

    async def backlog(self, caller: str) -> Backlog:
        """What waits, and how many jobs the caller has."""
        (found,) = await self._database.one(BACKLOG, {"caller": caller})
        return Backlog(*found.values())

    async def order(self, now: float, limit: int = 1000) -> tuple[str, ...]:
        """The ids of the waiting jobs in the order in which they will be claimed."""
        return tuple(each.id for each in (await self._queue(now, limit, Wants())).jobs)

    async def claim(self, worker: str, wants: Wants, now: float) -> list[Claim]:
        """Take the next waiting jobs; who finds nothing has only read."""
        for spare in _SPARE:
            queue = await self._queue(now, wants.jobs + spare, wants)
            if queue.overdue and await self._reaped(now):
                queue = await self._queue(now, wants.jobs + spare, wants)
            if not moves.fitting(queue.jobs, wants):
                break
            claims = await self._take(queue, wants, worker, now)
            if claims:
                return claims
            # Others were faster with all of them; there are perhaps more.
        return []

    async def renew(self, leases: Sequence[Lease], now: float, steps: Mapping[str, int] | None = None) -> Renewal:
        """A heartbeat."""
        if not leases:
            return Renewal((), frozenset(), frozenset())
        told = [
            {"id": each.job_id, "fence": each.fence, "worker": each.worker, "step": (steps or {}).get(each.job_id)}
            for each in leases
        ]
        given = {"told": json.dumps(told), "expires": now + self._rules.lease_s, "now": now}
        found = await self._database.one(RENEW[self._dialect], given, writes=True)
        kept = {row["id"]: Lease(row["id"], row["worker"], row["fence"], row["expires"]) for row in found}
        return Renewal(
            tuple(kept[each.job_id] for each in leases if each.job_id in kept),
            frozenset(each.job_id for each in leases) - kept.keys(),
            frozenset(row["id"] for row in found if row["cancel_requested"]),
            frozenset(row["id"] for row in found if row["watched"]),
        )

    async def start(self, lease: Lease, now: float) -> JobRecord:
        """The job runs."""
        return await self._written(lease, START, {"now": now})

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> JobRecord:
        """The next attempt can go on here."""
        return await self._move(lease, lambda entry: moves.checkpointed(entry, checkpoint))

    async def finish(self, lease: Lease, ending: Ending, now: float) -> JobRecord:
        """The job is over."""
        failure = ending.failure
        given = {
            "now": now,
            "state": str(ending.state),
            "reason": failure.reason if failure else None,
            "status": failure.status if failure else None,
            "step": ending.step,
            "artifacts": json.dumps(dict(ending.artifacts)),
        }
        return await self._written(lease, FINISH, given)

    async def release(self, lease: Lease, now: float) -> JobRecord:
        """Give a job back."""
        record = await self._move(lease, lambda entry: moves.released(entry, now))
        await self.wake()
        return record

    async def request_cancel(self, job_id: str, now: float) -> JobRecord:
        """Cancel a job, or ask its worker to."""
        async with self._write() as connection:
            entry = await self._known(connection, job_id)
            after = await self._put(connection, entry, moves.cancel_asked(entry, now))
        await self.wake()
        return after.record

    async def take_messages(self, now: float, held_s: float, limit: int) -> list[JobRecord]:
        """Jobs that are over and of which a message is due."""
        due = owed_query(now).limit(limit)
        async with self._read() as connection:  # mostly there is none, and nobody need wait for a write
            if (await connection.execute(due.with_only_columns(JOBS.c.id).limit(1))).first() is None:
                return []
        async with self._write() as connection:
            found = await _entries(connection, due.with_for_update(skip_locked=True))
            taken = [await self._put(connection, entry, moves.sending(entry, now, held_s)) for entry in found]
        return [entry.record for entry in taken]

    async def note_message(self, job_id: str, tries: int, due: float | None, outcome: str | None = None) -> None:
        """Note how a try went."""
        async with self._write() as connection:
            entry = await self._entry(connection, job_id)
            if entry is not None:
                await self._put(connection, entry, moves.noted(entry, tries, due, outcome))

    async def reap(self, now: float) -> list[JobRecord]:
        """Free the jobs of expired leases, and end what nobody may work on any more."""
        return [entry.record for entry in await self._reaped(now) if entry.record.state.over]

    async def expired(self, before: float, limit: int = 1000) -> list[JobRecord]:
        """Jobs that ended before a time, the longest ended first."""
        async with self._read() as connection:
            return [entry.record for entry in await _entries(connection, expired_query(before).limit(limit))]

    async def delete(self, job_ids: Collection[str]) -> int:
        """Forget jobs that are over."""
        over = self._these(job_ids).where(JOBS.c.ended.is_not(None)).with_for_update(skip_locked=True)
        forgotten = sa.delete(TURNS).where(~sa.exists().where(JOBS.c.caller == TURNS.c.caller))
        async with self._write() as connection:
            ids = (await connection.execute(over)).scalars().all()
            if ids:
                await connection.execute(sa.delete(PROGRESS).where(self._among(ids, PROGRESS.c.job_id)))
                await connection.execute(sa.delete(JOBS).where(self._among(ids)))
                await connection.execute(forgotten)
        return len(ids)

    async def references(self) -> set[str]:
        """Every content address that some job refers to."""
        found: set[str] = set()
        async with self._read() as connection:
            async for artifacts, checkpoint in await connection.stream(sa.select(JOBS.c.artifacts, JOBS.c.checkpoint)):
                found.update(json.loads(artifacts).values())
                found.update(() if checkpoint is None else (checkpoint,))
        return found

    async def watch(self, job_ids: Collection[str], until: float) -> None:
        """Ask the workers of these jobs to tell of their progress."""
        open_ones = sa.select(JOBS.c.id, sa.literal(until)).where(self._among(sorted(job_ids)), _OPEN)
        insert = self._insert(PROGRESS).from_select(["job_id", "watched_until"], open_ones)
        longer = {"watched_until": insert.excluded.watched_until}
        later = PROGRESS.c.watched_until < insert.excluded.watched_until
        async with self._write() as connection:
            await connection.execute(sa.delete(PROGRESS).where(PROGRESS.c.watched_until < until - REMEMBERED_S))
            await connection.execute(insert.on_conflict_do_update(index_elements=["job_id"], set_=longer, where=later))
        await self.wake(Topic.WORK)

    async def tell(self, progress: Sequence[Progress]) -> None:
        """Replace what was told of these jobs."""
        if not progress:
            return
        given = [
            {"id": each.job_id, "new_fence": each.fence, "new_number": each.number, "new_told": each.told}
            for each in sorted(progress, key=lambda each: each.job_id)
        ]
        async with self._write() as connection:
            await connection.execute(_TELLING, given)
        await self.wake(Topic.NEWS)

    async def glance(self, job_ids: Collection[str]) -> dict[str, Glance]:
        """How these jobs stand."""
        rows = await self._database.one(GLANCE[self._dialect], {"these": json.dumps(sorted(job_ids))})
        return {
            row["id"]: Glance(
                JobState(row["state"]),
                row["step"],
                row["attempts"],
                None if row["told"] is None else Progress(row["id"], row["fence"], row["number"], row["told"]),
            )
            for row in rows
        }

    async def report(self, presence: Presence) -> None:
        """A worker tells of itself."""
        values = {"seen": presence.seen, "told": presence.told}
        insert = self._insert(WORKERS).values(worker=presence.worker, **values)
        async with self._write() as connection:
            await connection.execute(insert.on_conflict_do_update(index_elements=["worker"], set_=values))

    async def leave(self, worker: str) -> None:
        """A worker is there no more."""
        async with self._write() as connection:
            await connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker == worker))

    async def present(self, since: float) -> list[Presence]:
        """The workers that have told of themselves since a time."""
        async with self._read() as connection:
            rows = (await connection.execute(sa.select(WORKERS).order_by(WORKERS.c.worker))).all()
        found = [Presence(row.worker, row.seen, row.told) for row in rows]
        if any(each.seen < since for each in found):
            async with self._write() as connection:
                await connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen < since))
        return [each for each in found if each.seen >= since]

    @asynccontextmanager
    async def listen(self, *topics: Topic) -> AsyncIterator["_Bell"]:
        """A bell of one's own; between processes it rings on PostgreSQL, and on SQLite where the store is shared."""
        await self._hear()
        local = LocalBell(topics)
        self._bells.add(local)
        try:
            yield _Bell(local, self._hear)
        finally:
            self._bells.discard(local)

    async def wake(self, *topics: Topic) -> None:
        """Ring the bells of these topics, or all.

        Not in the transaction of a write: PostgreSQL would let all of those wait for one another.
        """
        self._ring(*topics)
        if not self._postgres:
            return
        try:
            await self._database.one(NOTIFY, {"topics": ",".join(topics)})
        except StoreError as error:
            _LOG.warning("nobody was woken: %s", error)

    async def close(self) -> None:
        """Give connections back."""
        self._closing = True
        if self._polling is not None:
            await asyncio.gather(self._polling, return_exceptions=True)
        await self._drop_listener()
        await self._database.close()

    # Statements

    async def _move(self, lease: Lease, how: Callable[[Entry], Entry]) -> JobRecord:
        async with self._write() as connection:
            entry = moves.held(await self._entry(connection, lease.job_id), lease)
            return (await self._put(connection, entry, how(entry))).record

    async def _known(self, connection: AsyncConnection, job_id: str) -> Entry:
        entry = await self._entry(connection, job_id)
        if entry is None:
            raise UnknownJobError(job_id)
        return entry

    async def _entry(self, connection: AsyncConnection, job_id: str) -> Entry | None:
        """A job, locked."""
        found = await _entries(connection, sa.select(JOBS).where(JOBS.c.id == job_id).with_for_update())
        return found[0] if found else None

    async def _put(self, connection: AsyncConnection, before: Entry, after: Entry) -> Entry:
        """Write what has changed of a locked job."""
        old, new = _row(before), _row(after)
        changes = {name: value for name, value in new.items() if value != old[name]}
        if changes:
            await connection.execute(sa.update(JOBS).where(JOBS.c.id == before.record.id).values(changes))
        return after

    async def _written(self, lease: Lease, how: Mapping[str, sa.TextClause], given: Mapping[str, Any]) -> JobRecord:
        """What a worker writes under its lease by one statement, and of which there is news."""
        named = {"id": lease.job_id, "fence": lease.fence, "worker": lease.worker, "topic": Topic.NEWS}
        found = await self._database.one(how[self._dialect], {**named, **given}, writes=True)
        if not found:
            raise LostLeaseError(lease)
        record = from_plain(found[0])
        await self._told(Topic.NEWS, record)
        return record

    async def _told(self, topic: Topic, record: JobRecord) -> None:
        """Ring for what was written of a job; on PostgreSQL the statement told it where the job is not durable."""
        if record.durable:
            await self.wake(topic)
        else:
            self._ring(topic)

    async def _added(self, entry: Entry, watched_until: float | None) -> bool:
        """Whether a new job was put into its table; False where something is in its way."""
        if self._postgres:
            given = {**_row(entry), "until": watched_until, "topic": Topic.WORK}
            return bool(await self._database.one(ADD, given, writes=True))
        insert = sqlite.insert(JOBS).values(_row(entry)).on_conflict_do_nothing().returning(JOBS.c.id)
        async with self._write() as connection:
            added = (await connection.execute(insert)).first() is not None
            if added and watched_until is not None:
                watched = {"job_id": entry.record.id, "watched_until": watched_until}
                await connection.execute(sqlite.insert(PROGRESS).values(watched).on_conflict_do_nothing())
        return added

    async def _reaped(self, now: float) -> list[Entry]:
        async with self._write() as connection:
            changed = await self._reap(connection, now)
        if changed:
            await self.wake()
        return changed

    async def _refuse(self, connection: AsyncConnection, record: JobRecord) -> None:
        """Raise for what is in a new job's way, if it still is."""
        if record.key is not None and (found := await _entries(connection, _standing(record.caller, record.key))):
            raise KeyTakenError(found[0].record)
        if (await connection.execute(sa.select(JOBS.c.id).where(JOBS.c.id == record.id))).first() is not None:
            raise JobExistsError(record.id)

    async def _reap(self, connection: AsyncConnection, now: float) -> list[Entry]:
        """The jobs that were freed or ended."""
        changed: list[Entry] = []
        for query in reap_queries(now):
            found = await _entries(connection, query)
            changed += [await self._put(connection, entry, moves.reaped(entry, now, self._rules)) for entry in found]
        return changed

    async def _queue(self, now: float, limit: int, wants: Wants) -> "_Queue":
        """The first waiting jobs in their order."""
        able, warm = wants.models, wants.warm
        if able is not None and warm is not None and able <= warm:
            warm = None
        given = {
            "able": None if able is None else json.dumps(sorted(able)),
            "warm": None if warm is None else json.dumps(sorted(warm)),
            "since": now - wants.patience_s,
            "now": now,
            "limit": limit,
        }
        rows = await self._database.one(QUEUE[self._dialect], given)
        waiting = [
            Candidate(row["id"], row["caller"], row["priority"], row["created"], row["rows"])
            for row in rows
            if row["id"] is not None
        ]
        served = {row["caller"]: row["served"] for row in rows if row["served"] is not None}
        ordered = moves.in_order(waiting, served, rows[0]["admissions"], now, self._rules)
        return _Queue(tuple(islice(ordered, limit)), rows[0]["admissions"], bool(rows[0]["overdue"]))

    async def _take(self, queue: "_Queue", wants: Wants, worker: str, now: float) -> list[Claim]:
        """Take the first of these that nobody else has taken since; who was served is noted with it."""
        if not self._postgres:
            return await self._take_alone(queue, wants, worker, now)
        given = {
            "ids": [each.id for each in queue.jobs],
            "jobs": wants.jobs,
            "room": wants.rows,
            "idle": wants.idle,
            "worker": worker,
            "expires": now + self._rules.lease_s,
            "now": now,
            "admissions": queue.admissions,
        }
        return [_claim(row, row["watched"]) for row in await self._database.one(TAKE, given, writes=True)]

    async def _take_alone(self, queue: "_Queue", wants: Wants, worker: str, now: float) -> list[Claim]:
        """Likewise, where nobody else can write meanwhile."""
        async with self._write() as connection:
            waiting = sa.select(JOBS.c.id).where(self._among([each.id for each in queue.jobs]), _WAITING)
            free = set((await connection.execute(waiting)).scalars())
            chosen = moves.fitting((each for each in queue.jobs if each.id in free), wants)
            if not chosen:
                return []
            taken = {
                "attempts": JOBS.c.attempts + 1,
                "fence": JOBS.c.fence + 1,
                "worker": worker,
                "expires": now + self._rules.lease_s,
            }
            update = sa.update(JOBS).where(self._among([each.id for each in chosen])).values(taken).returning(*JOBS.c)
            rows = {row["id"]: row for row in (await connection.execute(update)).mappings()}
            watching = sa.select(PROGRESS.c.job_id).where(
                self._among(list(rows), PROGRESS.c.job_id), PROGRESS.c.watched_until > now
            )
            watched = set((await connection.execute(watching)).scalars())
            counts = {each.caller: queue.admissions + place for place, each in enumerate(chosen, start=1)}
            turns = [{"caller": caller, "served": count} for caller, count in counts.items()]
            serve = sqlite.insert(TURNS)
            serve = serve.on_conflict_do_update(index_elements=["caller"], set_={"served": serve.excluded.served})
            await connection.execute(serve, turns)
        return [_claim(rows[each.id], each.id in watched) for each in chosen]

    def _insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        return postgresql.insert(table) if self._postgres else sqlite.insert(table)

    def _these(self, job_ids: Iterable[str]) -> sa.Select[Any]:
        return sa.select(JOBS.c.id).where(self._among(list(job_ids)))

    def _among(self, names: Sequence[str], column: sa.ColumnElement[str] = JOBS.c.id) -> sa.ColumnElement[bool]:
        """Whether a column has one of these values: as one parameter, so that any number is one statement."""
        if self._postgres:
            return column == sa.any_(sa.cast(names, postgresql.ARRAY(sa.Text)))
        return column.in_(sa.select(sa.func.json_each(json.dumps(names)).table_valued("value").c.value))

    @property
    def _dialect(self) -> str:
        return self._engine.dialect.name

    # Bells

    def _ring(self, *topics: Topic) -> None:
        for bell in self._bells:
            if bell.hears(topics):
                bell.ring()

    def _rung(self, _: object, __: int, ___: str, payload: str) -> None:
        """PostgreSQL tells of another process's ring."""
        known = {str(topic): topic for topic in Topic}
        self._ring(*(known[name] for name in payload.split(",") if name in known))

    async def _hear(self) -> None:
        """Listen to other processes, if the connection for it was lost or is the first."""
        if not self._postgres:
            if self._shared and self._polling is None and self._engine.url.database:
                self._polling = asyncio.create_task(self._poll(Path(self._engine.url.database)))
            return
        async with self._connecting:
            if self._hearing:
                return
            try:
                async with told():
                    await self._drop_listener()
                    await self._connect_listener()
            except StoreError as error:
                _LOG.warning("nothing is heard from other processes until the next try: %s", error)
            except Exception:
                # Whoever waits for a bell looks again all the same, and must not end of it.
                _LOG.exception("nothing is heard from other processes until the next try")

    async def _poll(self, file: Path) -> None:
        """Ring when a process has written: SQLite tells nobody, but its log's file changes.

        Files' times are told in steps of some milliseconds. What is written in the same step as what was just seen
        would go unnoticed, so the next look rings once more.
        """
        log = file.with_name(f"{file.name}-wal")
        seen, again = _changed(log), True
        while not self._closing:
            found = _changed(log)
            if found != seen or again:
                self._ring()
            seen, again = found, found != seen
            await asyncio.sleep(_POLL_S)

    async def _connect_listener(self) -> None:
        self._listener = await self._engine.connect()
        driver = (await self._listener.get_raw_connection()).driver_connection
        if driver is None:
            raise StoreUnavailableError("the connection was lost")
        with wrapped("LISTEN"):
            await driver.add_listener(CHANNEL, self._rung)
        driver.add_termination_listener(self._unheard)
        self._hearing = True
        # What rang meanwhile was not heard.
        self._ring()

    def _unheard(self, *_: object) -> None:
        self._hearing = False
        self._ring()

    async def _drop_listener(self) -> None:
        """Close its connection: nobody else may get one that listens."""
        listener, self._listener, self._hearing = self._listener, None, False
        if listener is not None:
            await listener.invalidate()
            await listener.close()


@dataclass(frozen=True, slots=True)
class _Queue:
    """What waits.

    Attributes:
        jobs: In their order.
        admissions: The highest count of claims so far.
        overdue: Whether a lease has expired, or a waiting job is late.
    """

    jobs: tuple[Candidate, ...]
    admissions: int
    overdue: bool


class _Bell:
    """Rings for this process's own writes and, on PostgreSQL, for those of others."""

    def __init__(self, local: LocalBell, hear: Callable[[], Any]) -> None:
        self._local, self._hear = local, hear

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring since the last call; False where none came in time."""
        await self._hear()
        return await self._local.wait(timeout_s)

    def ring(self) -> None:
        """Ring this one alone."""
        self._local.ring()


def _changed(file: Path) -> tuple[int, int] | None:
    """When a file was last written, in nanoseconds, and its size; None where there is none."""
    try:
        told = file.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size


def _standing(caller: str, key: str) -> sa.Select[Any]:
    """The job that a caller's idempotency key stands for, if there is one."""
    standing = JOBS.c.state.not_in([JobState.FAILED, JobState.CANCELLED])
    return sa.select(JOBS).where(JOBS.c.caller == caller, JOBS.c.idempotency_key == key, standing)


def page_query(filters: Filters, cursor: str | None) -> sa.Select[Any]:
    """The jobs that a list shows, newest first."""
    query = sa.select(JOBS).order_by(JOBS.c.created.desc(), JOBS.c.id.desc())
    if filters.caller is not None:
        query = query.where(JOBS.c.caller == filters.caller)
    if filters.label is not None:
        query = query.where(JOBS.c.label == filters.label)
    if filters.kind is not None:
        query = query.where(JOBS.c.kind == filters.kind)
    if filters.state is not None:
        query = query.where(JOBS.c.state == filters.state)
    if filters.open or (filters.state is not None and not filters.state.over):
        query = query.where(_OPEN)
    if cursor is not None:
        created, job_id = place_of(cursor)
        query = query.where(sa.tuple_(JOBS.c.created, JOBS.c.id) < sa.tuple_(sa.literal(created), sa.literal(job_id)))
    return query


def reap_queries(now: float) -> tuple[sa.Select[Any], ...]:
    """Expired leases; waiting jobs that are late. What others write at the moment is left to them."""
    expired = sa.select(JOBS).where(JOBS.c.worker.is_not(None), JOBS.c.expires <= now)
    late = sa.select(JOBS).where(_WAITING, JOBS.c.deadline <= now)
    return tuple(query.limit(_REAPED_AT_ONCE).with_for_update(skip_locked=True) for query in (expired, late))


def owed_query(now: float) -> sa.Select[Any]:
    """Jobs that are over and of which a message is due, the longest due first."""
    due = sa.and_(JOBS.c.message_due.is_not(None), JOBS.c.message_due <= now, JOBS.c.ended.is_not(None))
    return sa.select(JOBS).where(due).order_by(JOBS.c.message_due)


def expired_query(before: float) -> sa.Select[Any]:
    """Jobs that ended before a time, the longest ended first."""
    return sa.select(JOBS).where(JOBS.c.ended < before).order_by(JOBS.c.ended, JOBS.c.id)


def _row(entry: Entry) -> dict[str, Any]:
    return {**to_plain(entry.record), "fence": entry.fence, "worker": entry.worker, "expires": entry.expires}


async def _entries(connection: AsyncConnection, query: sa.Executable) -> list[Entry]:
    """The jobs that a statement returns, all their columns."""
    rows = (await connection.execute(query)).mappings().all()
    return [Entry(from_plain(row), row["fence"], row["worker"], row["expires"]) for row in rows]


def _claim(row: Mapping[Any, Any], watched: object) -> Claim:
    """A job that was just taken."""
    lease = Lease(row["id"], row["worker"], row["fence"], row["expires"])
    return Claim(from_plain(row), lease, bool(watched))
