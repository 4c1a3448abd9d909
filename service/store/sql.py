"""A store in a database: SQLite within one machine, PostgreSQL for many.

A write that concerns one job reads it locked, applies a function of :mod:`service.store.moves`, and writes what has
changed, in one transaction. Claims and heartbeats are a few statements for any number of jobs. SQLite has one writer at
a time; on PostgreSQL claims pass over rows that others are claiming, and so do not wait for one another.
"""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store import moves
from service.store.database import Database, open_database, told
from service.store.memory import LocalBell
from service.store.moves import Candidate, Entry
from service.store.port import (
    REMEMBERED_S,
    JobExistsError,
    KeyTakenError,
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

_LOG: Final = logging.getLogger(__name__)
_CHANNEL: Final = "superdiff"  # the bell's
# How often a shared SQLite file is looked at.
_POLL_S: Final = 0.02
# Of waiting jobs, so many more than wanted are put in order as others may be claiming them at the same moment.
_SPARE: Final = 32
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

_RENEW: Final = """
UPDATE jobs SET expires = :expires, step = coalesce(told.step, jobs.step)
FROM {told}
WHERE jobs.id = told.id AND jobs.fence = told.fence AND jobs.worker IS NOT NULL
RETURNING jobs.id, jobs.fence, jobs.worker, jobs.expires, jobs.cancel_requested
"""
_TOLD_SQLITE: Final = """(
    SELECT json_extract(value, '$.id') AS id, json_extract(value, '$.fence') AS fence,
        json_extract(value, '$.step') AS step
    FROM json_each(:told)
) AS told"""
_TOLD_POSTGRES: Final = "jsonb_to_recordset(CAST(:told AS jsonb)) AS told(id text, fence bigint, step integer)"


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
        insert = self._insert(JOBS).values(_row(entry)).on_conflict_do_nothing().returning(JOBS.c.id)
        for _ in range(_TRIES):
            async with self._write() as connection:
                if (await connection.execute(insert)).first() is not None:
                    if watched_until is not None:
                        watched = {"job_id": record.id, "watched_until": watched_until}
                        await connection.execute(self._insert(PROGRESS).values(watched).on_conflict_do_nothing())
                    break
                await self._refuse(connection, record)
            # Whoever was in the way has gone since.
        else:
            raise StoreUnavailableError("the store is busy with the same key; try again")
        await self.wake(Topic.WORK)
        return None if lease_to is None else entry.claim.lease

    async def standing(self, caller: str, key: str) -> JobRecord | None:
        """The job that a caller's idempotency key stands for."""
        async with self._read() as connection:
            found = await _entries(connection, _standing(caller, key))
        return found[0].record if found else None

    async def get(self, job_id: str) -> JobRecord:
        """A job as it stands."""
        async with self._read() as connection:
            found = await _entries(connection, sa.select(JOBS).where(JOBS.c.id == job_id))
        if not found:
            raise UnknownJobError(job_id)
        return found[0].record

    async def page(self, filters: Filters | None = None, cursor: str | None = None, limit: int = 100) -> Page:
        """Jobs, newest first."""
        query = page_query(filters or Filters(), cursor).limit(limit + 1)
        async with self._read() as connection:
            found = await _entries(connection, query)
        shown = tuple(entry.record for entry in found[:limit])
        return Page(shown, cursor_of((shown[-1].created, shown[-1].id)) if len(found) > limit else None)

    async def backlog(self, caller: str) -> Backlog:
        """What waits, and how many jobs the caller has."""
        async with self._read() as connection:
            found = (await connection.execute(backlog_query(caller))).one()
        return Backlog(*found)

    async def order(self, now: float, limit: int = 1000) -> tuple[str, ...]:
        """The ids of the waiting jobs in the order in which they will be claimed."""
        async with self._read() as connection:
            ordered, _ = await self._in_order(connection, now, limit, None)
        return tuple(each.id for each in ordered)

    async def claim(self, worker: str, wants: Wants, now: float) -> list[Claim]:
        """Take the next waiting jobs."""
        changed = False
        claims: list[Claim] = []
        for _ in range(_TRIES):
            async with self._write() as connection:
                changed |= bool(await self._reap(connection, now))
                ordered, admissions = await self._in_order(connection, now, 2 * wants.jobs + _SPARE, wants)
                free = await self._locked(connection, ordered, wants.jobs)
                chosen = moves.fitting(free, wants)
                if chosen:
                    claims = await self._take(connection, chosen, worker, now)
                    await self._serve(connection, chosen, admissions)
            # Where others were faster with all of them, there are perhaps more.
            if free or not ordered:
                break
        if changed:
            await self.wake()
        return claims

    async def renew(self, leases: Sequence[Lease], now: float, steps: Mapping[str, int] | None = None) -> Renewal:
        """A heartbeat."""
        if not leases:
            return Renewal((), frozenset(), frozenset())
        told = [{"id": each.job_id, "fence": each.fence, "step": (steps or {}).get(each.job_id)} for each in leases]
        given = {"told": json.dumps(told), "expires": now + self._rules.lease_s}
        async with self._write() as connection:
            found = (await connection.execute(self._renewing, given)).all()
            watched = await self._watched([row.id for row in found], connection, now)
        kept = {row.id: Lease(row.id, row.worker, row.fence, row.expires) for row in found}
        return Renewal(
            tuple(kept[each.job_id] for each in leases if each.job_id in kept),
            frozenset(each.job_id for each in leases) - kept.keys(),
            frozenset(row.id for row in found if row.cancel_requested),
            watched,
        )

    async def start(self, lease: Lease, now: float) -> JobRecord:
        """The job runs."""
        record = await self._move(lease, lambda entry: moves.started(entry, now))
        await self.wake(Topic.NEWS)
        return record

    async def checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> JobRecord:
        """The next attempt can go on here."""
        return await self._move(lease, lambda entry: moves.checkpointed(entry, checkpoint))

    async def finish(self, lease: Lease, ending: Ending, now: float) -> JobRecord:
        """The job is over."""
        record = await self._move(lease, lambda entry: moves.finished(entry, ending, now))
        await self.wake(Topic.NEWS)
        return record

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
        async with self._write() as connection:
            changed = await self._reap(connection, now)
        if changed:
            await self.wake()
        return [entry.record for entry in changed if entry.record.state.over]

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
        columns = JOBS.c.id, JOBS.c.state, JOBS.c.step, JOBS.c.attempts
        told_columns = PROGRESS.c.fence, PROGRESS.c.number, PROGRESS.c.told
        joined = sa.outerjoin(JOBS, PROGRESS, JOBS.c.id == PROGRESS.c.job_id)
        query = sa.select(*columns, *told_columns).select_from(joined).where(self._among(sorted(job_ids)))
        async with self._read() as connection:
            rows = (await connection.execute(query)).all()
        return {
            row.id: Glance(
                JobState(row.state),
                row.step,
                row.attempts,
                None if row.told is None else Progress(row.id, row.fence, row.number, row.told),
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
            async with self._read() as connection:
                await connection.execute(sa.select(sa.func.pg_notify(_CHANNEL, ",".join(topics))))
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

    async def _watched(self, job_ids: Sequence[str], connection: AsyncConnection, now: float) -> frozenset[str]:
        """Those of these jobs whose progress somebody waits for."""
        until = PROGRESS.c.watched_until > now
        query = sa.select(PROGRESS.c.job_id).where(self._among(list(job_ids), PROGRESS.c.job_id), until)
        return frozenset((await connection.execute(query)).scalars())

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

    async def _in_order(
        self, connection: AsyncConnection, now: float, limit: int, wants: Wants | None
    ) -> tuple[list[Candidate], int]:
        """The first waiting jobs in their order, and the highest count of claims so far."""
        suited: sa.ColumnElement[bool] = sa.true()
        if wants is not None and (wants.models is not None or wants.warm is not None):
            found = (await connection.execute(sa.select(JOBS.c.models).where(_WAITING).distinct())).scalars().all()
            sets = {each: json.loads(each) for each in found}
            # Whatever has waited long enough, or has its models here.
            late = [each for each in found if moves.suits(sets[each], -math.inf, wants, now)]
            warm = [each for each in late if moves.suits(sets[each], math.inf, wants, now)]
            suited = JOBS.c.models.in_(warm)
            if len(warm) < len(late):
                waited = JOBS.c.created <= now - wants.patience_s
                suited = sa.or_(suited, sa.and_(JOBS.c.models.in_(late), waited))
        rows = (await connection.execute(waiting_query(limit, suited))).all()
        waiting = [Candidate(row.id, row.caller, row.priority, row.created, row.rows) for row in rows]
        served = {row.caller: row.served for row in rows if row.served is not None}
        admissions = rows[0].admissions if rows else 0
        ordered = moves.in_order(waiting, served, admissions, now, self._rules)
        return [each for each, _ in zip(ordered, range(limit), strict=False)], admissions

    async def _locked(self, connection: AsyncConnection, ordered: Sequence[Candidate], jobs: int) -> list[Candidate]:
        """The first of these that nobody else is claiming."""
        if not self._postgres or not ordered:
            return list(ordered)
        ids = sa.cast([each.id for each in ordered], postgresql.ARRAY(sa.Text))
        query = sa.select(JOBS.c.id).where(JOBS.c.id == sa.any_(ids), _WAITING)
        query = query.order_by(sa.func.array_position(ids, JOBS.c.id)).limit(jobs).with_for_update(skip_locked=True)
        free = set((await connection.execute(query)).scalars())
        return [each for each in ordered if each.id in free]

    async def _take(
        self, connection: AsyncConnection, chosen: Sequence[Candidate], worker: str, now: float
    ) -> list[Claim]:
        taken = {
            "attempts": JOBS.c.attempts + 1,
            "fence": JOBS.c.fence + 1,
            "worker": worker,
            "expires": now + self._rules.lease_s,
        }
        update = sa.update(JOBS).where(self._among([each.id for each in chosen])).values(taken).returning(*JOBS.c)
        claims = {entry.record.id: entry.claim for entry in await _entries(connection, update)}
        return [claims[each.id] for each in chosen]

    async def _serve(self, connection: AsyncConnection, chosen: Sequence[Candidate], admissions: int) -> None:
        """Note whose turn it was.

        Who is just now served by another claim is passed over: two claims never wait for each other's callers.
        """
        counts = {each.caller: admissions + place for place, each in enumerate(chosen, start=1)}
        query = sa.select(TURNS.c.caller).where(self._among(list(counts), TURNS.c.caller))
        free = set((await connection.execute(query.with_for_update(skip_locked=True))).scalars())
        values = [{"caller": caller, "served": count} for caller, count in sorted(counts.items())]
        if new := [value for value in values if value["caller"] not in free]:
            await connection.execute(self._insert(TURNS).on_conflict_do_nothing(), new)
        update = sa.update(TURNS).where(TURNS.c.caller == sa.bindparam("one")).values(served=sa.bindparam("count"))
        if old := [{"one": value["caller"], "count": value["served"]} for value in values if value["caller"] in free]:
            await connection.execute(update, old)

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
    def _renewing(self) -> sa.TextClause:
        return sa.text(_RENEW.format(told=_TOLD_POSTGRES if self._postgres else _TOLD_SQLITE))

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
            await self._drop_listener()
            try:
                async with told():
                    await self._connect_listener()
            except StoreError as error:
                _LOG.warning("nothing is heard from other processes until the next try: %s", error)

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
        await driver.add_listener(_CHANNEL, self._rung)
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


def waiting_query(limit: int, suited: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Of each caller and priority the first waiting jobs; when the caller was last served, and when anyone was.

    Args:
        limit: At most so many of each.
        suited: Only those of which this holds.
    """
    columns = JOBS.c.id, JOBS.c.caller, JOBS.c.priority, JOBS.c.created, JOBS.c.rows
    place = sa.func.row_number().over(
        partition_by=(JOBS.c.caller, JOBS.c.priority), order_by=(JOBS.c.created, JOBS.c.id)
    )
    first = sa.select(*columns, place.label("place")).where(_WAITING, suited).subquery()
    joined = sa.outerjoin(first, TURNS, first.c.caller == TURNS.c.caller)
    newest = sa.select(sa.func.coalesce(sa.func.max(TURNS.c.served), 0)).correlate(None).scalar_subquery()
    found = sa.select(first, TURNS.c.served, newest.label("admissions"))
    return found.select_from(joined).where(first.c.place <= limit)


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


def backlog_query(caller: str) -> sa.Select[Any]:
    """Waiting jobs, their rows, their work, and the caller's open jobs."""
    own = sa.select(sa.func.count()).select_from(JOBS).where(_OPEN, JOBS.c.caller == caller).scalar_subquery()
    rows = sa.func.coalesce(sa.func.sum(JOBS.c.rows), 0)
    # Sums of products outgrow the columns' own type.
    work = sa.func.coalesce(sa.func.sum(sa.cast(JOBS.c.rows, sa.BigInteger) * JOBS.c.steps), 0)
    first = sa.func.min(JOBS.c.deadline)
    weight = sa.cast(sa.func.coalesce(sa.func.sum(JOBS.c.weight), 0), sa.BigInteger)
    return sa.select(sa.func.count(), rows, sa.cast(work, sa.BigInteger), own, first, weight).where(_WAITING)


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
