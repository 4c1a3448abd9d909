"""The keeper: between the engine, which knows one process, and the store, which outlives it.

A job that is to be kept is in the store, leased to this process, before its client hears that it was accepted. From
then on what becomes of it is written under the lease's fence: that it runs, its checkpoints, its end. Its end is told
only once it is written. A heartbeat renews the leases; whoever loses one drops the job and writes nothing. Jobs that
nobody has (their process died, or gave them back) are taken up while the engine has room.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pipelines.catalog import Catalog
from pipelines.model import Model
from pipelines.plan import make_plan
from service.durable.blobs import UnreadableError
from service.durable.outcomes import read_outcome, write_outcome
from service.durable.requests import read_source, write_source
from service.durable.snapshots import read_snapshot, write_snapshot
from service.engine.engine import Engine
from service.engine.job import CancelledJobError, EngineStoppedError, Job, Outcome, Snapshot
from service.faults import fault_of
from service.keeper.errors import IdempotencyError, LostFileError, MovedError
from service.keeper.kept import Kept
from service.keeper.stored import OUTCOME, SOURCE, failure_of, phase_of, record_of, stored_of
from service.registry import Record, Registry
from service.store.artifacts import Artifacts, DamagedArtifactError, UnknownArtifactError
from service.store.port import (
    DiskFullError,
    KeyTakenError,
    LostLeaseError,
    Store,
    StoreError,
    StoreUnavailableError,
    UnknownJobError,
)
from service.store.records import (
    Checkpoint,
    Claim,
    Ending,
    Failure,
    Filters,
    Idempotency,
    JobRecord,
    JobState,
    Lease,
    Wants,
    cursor_of,
    place_of,
)
from service.store.retention import Retention, sweep

_LOG: Final = logging.getLogger(__name__)
_CLAIMED_AT_ONCE: Final = 8
_RETRY_S: Final = (0.1, 0.5, 1.0, 2.0)
_LAST_WRITES_S: Final = 10.0
_PROBE_BYTES: Final = 1 << 16
_MOVED: Final = "the job goes on in another process; ask for it again"
_RESTARTING: Final = "the service is shutting down; the job goes on when it is back"

T = TypeVar("T")


class Models(Protocol):
    """The models that there are now."""

    @property
    def catalog(self) -> Catalog:
        """The catalogue; a reload puts another in its place."""
        ...

    @property
    def ready(self) -> asyncio.Event:
        """Set when the models that are to be ready at the start are."""
        ...

    def models(self, names: Iterable[str], catalog: Catalog) -> AbstractAsyncContextManager[Mapping[str, Model]]:
        """The models of these names, loaded, for as long as the context is open."""
        ...


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often the keeper looks after things, in seconds.

    Attributes:
        lease_s: How long a lease holds; it is renewed every third of it.
        beat_s: How often the store is told which jobs run.
        poll_s: How often the store is asked for jobs that nobody has, where no bell rang.
        watch_s: How often a job of another process is looked at for whoever waits for it.
    """

    lease_s: float = 30.0
    beat_s: float = 1.0
    poll_s: float = 2.0
    watch_s: float = 1.0


class Keeper:
    """Keeps jobs, and finds them again; for one event loop.

    Args:
        engine: What runs them.
        registry: The jobs of this process.
        rhythm: How often things are looked after.
    """

    def __init__(self, engine: Engine, registry: Registry, rhythm: Rhythm | None = None) -> None:
        self._engine, self._registry = engine, registry
        self._rhythm = rhythm or Rhythm()
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._kept: dict[str, Kept] = {}
        # Jobs of other processes for whose end somebody waits here.
        self._watched: dict[str, Record] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._open: tuple[Store, Artifacts] | None = None
        self._stopping = False
        self._trouble: StoreError | None = None

    async def start(self, store: Store, artifacts: Artifacts, models: Models) -> None:
        """Begin.

        Args:
            store: Where jobs are kept.
            artifacts: Where their files are.
            models: Loads models.
        """
        self._open = store, artifacts
        self._models = models
        for loop in (self._beat(), self._take_up(models.ready)):
            self._loops.append(asyncio.create_task(loop))

    async def stop(self) -> None:
        """Write what is left to write, within some seconds, and close the store; the engine has stopped."""
        if self._open is None:
            return
        # Nothing is cut off in a transaction: what waits for a bell hears one, and sees that it is the last.
        self._stopping = True
        await self._store.wake()
        tasks = {*self._loops, *self._tasks}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_LAST_WRITES_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        store, self._open = self._store, None
        await store.close()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now; None where it can."""
        return None if self._trouble is None else str(self._trouble)

    @property
    def _store(self) -> Store:
        return self._parts()[0]

    @property
    def _artifacts(self) -> Artifacts:
        return self._parts()[1]

    def _parts(self) -> tuple[Store, Artifacts]:
        if self._open is None:
            raise EngineStoppedError("the service is shutting down")
        return self._open

    async def accept(
        self, record: Record, idempotency: Idempotency | None = None, callback_url: str | None = None
    ) -> Record:
        """Take a job in for good: it is in the store when this returns. A key that stands for it already finds it.

        Args:
            record: The job, not yet queued.
            idempotency: The client's key, if it sent one.
            callback_url: Where its end is told, if anywhere; that is owed from now on.

        Raises:
            IdempotencyError: The key stands for another request.
            QueueFullError: There is no place.
            StoreUnavailableError: It cannot be kept now.
            DiskFullError: There is no space to keep it.
        """
        job = record.job
        if not self._engine.accepting:
            raise EngineStoppedError("the service is shutting down")
        if self._trouble is not None:
            # At once: who waits for a store that does not answer waits long, and others behind it.
            raise type(self._trouble)(str(self._trouble))
        kept = Kept(record)
        # Here before it is in the store: who sends the same key meanwhile finds it.
        self._kept[job.id] = kept
        try:
            artifacts = {}
            if job.source is not None:
                artifacts[SOURCE] = await self._artifacts.put(await asyncio.to_thread(write_source, job.source))
            stored = stored_of(record, idempotency, artifacts, callback_url)
            lease = await self._store.add(stored, self._worker)
        except KeyTakenError as error:
            del self._kept[job.id]
            return await self._standing_for(error.winner, idempotency)
        except BaseException as error:
            del self._kept[job.id]
            job.leave(error if isinstance(error, Exception) else MovedError(_RESTARTING))
            if isinstance(error, StoreUnavailableError | DiskFullError):
                self._note(error)
                self._spawn(self._disown(job.id))
            raise
        if lease is None:
            raise RuntimeError(f"the store gave no lease of the job {job.id}")
        kept.lease = lease
        try:
            self._engine.enqueue(job)
        except Exception as error:
            del self._kept[job.id]
            job.leave(error)
            await self._undo(lease)
            raise
        self._spawn(self._write(kept))
        return record

    async def standing(self, caller: str, idempotency: Idempotency) -> Record | None:
        """The job that a caller's key stands for; None where it stands for none.

        Raises:
            IdempotencyError: The key stands for another request.
        """
        winner = await self._store.standing(caller, idempotency.key)
        return None if winner is None else await self._standing_for(winner, idempotency)

    def unfinished(self, caller: str) -> int:
        """How many of the caller's jobs are not over in this process."""
        records = [*self._registry.of(caller), *(kept.record for kept in self._kept.values())]
        return len({r.job.id for r in records if r.job.caller == caller and not r.job.over})

    async def find(self, job_id: str, caller: str) -> Record:
        """A caller's job as it stands; :class:`UnknownJobError` where the caller has none of that id.

        A job is its caller's alone: to others it is as if there were none.
        """
        record = self._here(job_id)
        if record is None:
            stored = await self._store.get(job_id)
            if stored.caller == caller:
                return await self._revived(stored)
        elif record.job.caller == caller:
            return record
        raise UnknownJobError(job_id)

    async def follow(self, job_id: str, caller: str) -> Record:
        """A job whose end is told here, whichever process it runs in; else as :meth:`find`."""
        record = await self.find(job_id, caller)
        if record.job.over or self._here(job_id) is not None:
            return record
        if job_id not in self._watched:
            self._watched[job_id] = record
            self._spawn(self._watch(record))
        return self._watched[job_id]

    async def page(
        self, filters: Filters, cursor: str | None, limit: int
    ) -> tuple[list[Record | JobRecord], str | None]:
        """A caller's jobs, newest first, those too that are in this process's memory only.

        Args:
            filters: Which; the caller is named.
            cursor: Of the page before; None for the first.
            limit: At most so many.

        Returns:
            The jobs, as they stand here where they are here; and the cursor of the next page.

        Raises:
            CursorError: No page gave that cursor.
        """
        before = None if cursor is None else place_of(cursor)
        page = await self._store.page(filters, cursor, limit)
        merged: list[tuple[tuple[float, str], Record | JobRecord]] = [
            ((stored.created, stored.id), self._here(stored.id) or stored) for stored in page.records
        ]
        for record in self._registry.of(filters.caller or ""):
            place = record.job.created, record.job.id
            if not record.kept and _shown(record, filters) and (before is None or place < before):
                merged.append((place, record))
        merged.sort(key=lambda each: each[0], reverse=True)
        more = page.cursor is not None or len(merged) > limit
        shown = merged[:limit]
        return [each for _, each in shown], cursor_of(shown[-1][0]) if more else None

    async def cancel(self, record: Record) -> None:
        """Have a job cancelled; it may take a moment."""
        if self._here(record.job.id) is not None:
            self._engine.cancel(record.job)
        else:
            await self._store.request_cancel(record.job.id, time.time())

    async def delete(self, record: Record) -> None:
        """Forget a job that is over, and what it made."""
        job_id = record.job.id
        if not record.kept:
            self._registry.remove(job_id)
            return
        stored = await self._store.get(job_id)
        await self._store.delete([job_id])
        for address in stored.addresses - await self._store.references():
            # One that was stored again since belongs to a job that comes just now.
            await self._artifacts.remove(address, stored.ended or 0.0)

    async def forget(self, retention: Retention) -> None:
        """Forget what is too old or too much."""
        await sweep(self._store, self._artifacts, retention, time.time())

    async def position(self, job_id: str) -> int | None:
        """How many waiting jobs come before one that no process has; None where it does not wait."""
        order = await self._store.order(time.time())
        return order.index(job_id) if job_id in order else None

    def _here(self, job_id: str) -> Record | None:
        kept = self._kept.get(job_id)
        return self._registry.find(job_id) if kept is None else kept.record

    async def _standing_for(self, winner: JobRecord, idempotency: Idempotency | None) -> Record:
        """The job that a key stands for, if it is the same request."""
        if idempotency is not None and winner.idempotency != idempotency:
            raise IdempotencyError("this Idempotency-Key came with another request before; take a new one")
        return await self.follow(winner.id, winner.caller)

    async def _revived(self, stored: JobRecord) -> Record:
        """A job of the store as one of this process."""
        record = record_of(stored)
        if stored.state.over:
            record.job.conclude(await self._ended(stored))
        return record

    async def _ended(self, stored: JobRecord) -> Outcome | Exception:
        """How a job of the store that is over ended."""
        if stored.state is not JobState.COMPLETED:
            return failure_of(stored)
        try:
            return await asyncio.to_thread(read_outcome, await self._file(stored.artifacts[OUTCOME]))
        except (LostFileError, UnreadableError) as error:
            _LOG.error("what job %s made cannot be read: %s", stored.id, error)
            return LostFileError("the files of this job are lost; it was completed")

    async def _file(self, address: str) -> bytes:
        try:
            return await self._artifacts.get(address)
        except (UnknownArtifactError, DamagedArtifactError) as error:
            raise LostFileError("a file of this job is lost or damaged") from error

    async def _watch(self, record: Record) -> None:
        """Tell here what becomes of a job of another process, until it is over."""
        job = record.job
        try:
            async with self._store.listen() as bell:
                while not (job.over or self._stopping):
                    with contextlib.suppress(StoreUnavailableError):
                        await self._look(record)
                    if not job.over:
                        await bell.wait(self._rhythm.watch_s)
        except (StoreError, UnreadableError) as error:
            job.conclude(error)
        finally:
            del self._watched[job.id]
            if not job.result.done():
                job.leave(MovedError(_MOVED))

    async def _look(self, record: Record) -> None:
        job = record.job
        try:
            stored = await self._store.get(job.id)
        except UnknownJobError:
            job.conclude(CancelledJobError("the job was deleted"))
            return
        if stored.state.over:
            job.conclude(await self._ended(stored))
            return
        job.phase, job.steps_taken = phase_of(stored), stored.step
        if not job.channel.newer(0):
            job.channel.publish("queued", await self.position(job.id) or 0)

    async def _write(self, kept: Kept) -> None:
        """Write down what the engine tells of a job, until its end."""
        job = kept.job
        try:
            while kept.how is None:
                await kept.stirred.wait()
                kept.stirred.clear()
                await self._checkpoint(kept)
            if kept.lost:
                self._drop(kept, MovedError(_MOVED))
            elif isinstance(kept.how, EngineStoppedError):
                await self._persisted(lambda: self._store.release(kept.lease, time.time()))
                self._drop(kept, MovedError(_RESTARTING))
            else:
                await self._end(kept, kept.how)
        except LostLeaseError:
            self._engine.cancel(job)
            self._drop(kept, MovedError(_MOVED))
        except asyncio.CancelledError:
            # The service ends before this could be written: the lease runs out, and the job is taken up again.
            self._drop(kept, MovedError(_RESTARTING))
            raise
        except Exception as error:
            _LOG.exception("job %s cannot be written down", job.id)
            self._kept.pop(job.id, None)
            job.conclude(error)

    async def _checkpoint(self, kept: Kept) -> None:
        """Write the newest snapshot; a job whose snapshot cannot be written goes on without one."""
        snapshot, kept.snapshot = kept.snapshot, None
        if snapshot is None or kept.lost:
            return
        try:
            address = await self._artifacts.put(await asyncio.to_thread(write_snapshot, snapshot))
            await self._store.checkpoint(kept.lease, Checkpoint(address, snapshot.index))
        except (StoreUnavailableError, DiskFullError) as error:
            self._note(error)

    async def _end(self, kept: Kept, how: Outcome | Exception) -> None:
        """Write the end of a job, then tell it."""
        try:
            ending = await self._ending(kept.job, how)
            await self._persisted(lambda: self._store.finish(kept.lease, ending, time.time()))
        except DiskFullError as error:
            _LOG.error("job %s failed: %s", kept.job.id, error)
            self._note(error)
            how = error
            kept.job.conclude(how)
            failed = await self._ending(kept.job, how)
            await self._persisted(lambda: self._store.finish(kept.lease, failed, time.time()), through_full_disk=True)
        self._kept.pop(kept.job.id, None)
        kept.job.conclude(how)

    async def _ending(self, job: Job, how: Outcome | Exception) -> Ending:
        if isinstance(how, CancelledJobError):
            return Ending(JobState.CANCELLED, step=job.index)
        if isinstance(how, Exception):
            fault = fault_of(how, reference=f"job id {job.id}")
            return Ending(JobState.FAILED, Failure(fault.detail, int(fault.status)), step=job.index)
        blob = await asyncio.to_thread(write_outcome, how)
        address = await self._persisted(lambda: self._artifacts.put(blob))
        return Ending(JobState.COMPLETED, artifacts={OUTCOME: address}, step=job.index)

    async def _persisted(self, act: Callable[[], Awaitable[T]], *, through_full_disk: bool = False) -> T:
        """What is done in the store, tried again for as long as that cannot be reached."""
        tries = 0
        while True:
            try:
                return await act()
            except StoreUnavailableError as error:
                self._note(error)
            except DiskFullError as error:
                self._note(error)
                if not through_full_disk:
                    raise
            await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
            tries += 1

    def _drop(self, kept: Kept, why: Exception) -> None:
        """Let go of a job that goes on elsewhere."""
        self._kept.pop(kept.job.id, None)
        if not kept.job.result.done():
            kept.job.leave(why)

    async def _undo(self, lease: Lease) -> None:
        """The store has a job for which there is no place here: it was never accepted."""
        try:
            await self._store.note_message(lease.job_id, 0, None)
            await self._store.finish(lease, Ending(JobState.CANCELLED), time.time())
            await self._store.delete([lease.job_id])
        except StoreError as error:
            _LOG.warning("job %s was refused, but cannot be deleted now: %s", lease.job_id, error)
            self._spawn(self._disown(lease.job_id))

    async def _disown(self, job_id: str) -> None:
        """Nobody heard that this job was accepted, but the store may have it: it shall not run."""

        async def disown() -> None:
            await self._store.note_message(job_id, 0, None)
            await self._store.request_cancel(job_id, time.time())

        with contextlib.suppress(UnknownJobError):
            await self._persisted(disown, through_full_disk=True)

    async def _beat(self) -> None:
        """Tell the store which jobs run and how far they are, and keep the leases."""
        renewed, heard = time.monotonic(), False
        async with self._store.listen() as bell:
            while not self._stopping:
                heard |= await bell.wait(self._rhythm.beat_s)
                since = time.monotonic() - renewed
                try:
                    await self._tell_started()
                    # A bell may mean that a job here was asked to be cancelled.
                    if since >= (self._rhythm.beat_s if heard else self._rhythm.lease_s / 3):
                        renewed, heard = time.monotonic(), False
                        await self._renew()
                    if self._trouble is not None:
                        await self._probe()
                except (StoreUnavailableError, DiskFullError) as error:
                    self._note(error)
                except Exception:
                    _LOG.exception("a heartbeat failed")

    async def _tell_started(self) -> None:
        for kept in list(self._kept.values()):
            if kept.leased and not (kept.started or kept.lost or kept.job.settled) and kept.job.started:
                kept.started = True
                try:
                    await self._store.start(kept.lease, time.time())
                except LostLeaseError:
                    self._lose(kept)
                except BaseException:
                    kept.started = False
                    raise

    async def _renew(self) -> None:
        held = {job_id: kept for job_id, kept in self._kept.items() if kept.leased and not kept.lost}
        if not held:
            return
        steps = {job_id: kept.job.index for job_id, kept in held.items()}
        renewal = await self._store.renew([kept.lease for kept in held.values()], time.time(), steps)
        for lease in renewal.kept:
            held[lease.job_id].lease = lease
        for job_id in renewal.lost:
            # One that was written at its end meanwhile is not lost.
            if job_id in self._kept and self._kept[job_id].how is None:
                self._lose(self._kept[job_id])
        for job_id in renewal.cancel:
            self._engine.cancel(held[job_id].job)

    def _lose(self, kept: Kept) -> None:
        """Another worker has the job: it ends here, and nothing of it is written."""
        _LOG.warning("job %s is another worker's by now", kept.job.id)
        kept.lost = True
        self._engine.cancel(kept.job)

    async def _probe(self) -> None:
        """Whether what could not be written can be by now."""
        written = await self._artifacts.put(os.urandom(_PROBE_BYTES))
        await self._artifacts.remove(written, math.inf)
        await self._store.reap(time.time())
        self._trouble = None

    async def _take_up(self, ready: asyncio.Event) -> None:
        """Take up jobs that nobody has, while there is room."""
        # Loading may take longer than the service lives.
        while not (ready.is_set() or self._stopping):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ready.wait(), self._rhythm.beat_s)
        async with self._store.listen() as bell:
            while not self._stopping:
                try:
                    while await self._claim():
                        pass
                except (StoreUnavailableError, DiskFullError) as error:
                    self._note(error)
                except Exception:
                    _LOG.exception("jobs cannot be taken up")
                await bell.wait(self._rhythm.poll_s)

    async def _claim(self) -> bool:
        """Claim what there is room for; whether there was something."""
        if not self._engine.accepting:
            return False
        rows, first = self._engine.room
        if rows <= 0 and not first:
            return False
        # The first may need more rows than are free: it waits here then, so that the device need not.
        names = frozenset(self._models.catalog.names)
        wants = Wants(_CLAIMED_AT_ONCE, max(0, rows), names, idle=first)
        claims = await self._store.claim(self._worker, wants, time.time())
        for claim in claims:
            await self._go_on(claim)
        return bool(claims)

    async def _go_on(self, claim: Claim) -> None:
        """Queue a claimed job, from its checkpoint if it has one."""
        stored = claim.record
        try:
            record = record_of(stored, claim.lease.fence)
        except UnreadableError as error:
            ending = Ending(JobState.FAILED, Failure(str(error), 500))
            await self._store.finish(claim.lease, ending, time.time())
            return
        kept = self._kept[stored.id] = Kept(record, claim.lease)
        self._spawn(self._write(kept))
        try:
            await self._restore(record.job, stored)
            self._engine.enqueue(record.job, bounded=False)
        except Exception as error:
            _LOG.warning("job %s cannot be taken up: %s", stored.id, error)
            record.job.end(error)

    async def _restore(self, job: Job, stored: JobRecord) -> None:
        """Give a job of the store its known picture, its checkpoint, and models that are what they were."""
        if SOURCE in stored.artifacts:
            job.source = await asyncio.to_thread(read_source, await self._file(stored.artifacts[SOURCE]))
        job.catalog = catalog = self._models.catalog
        async with self._models.models(job.plan.models, catalog) as models:
            cards = {name: models[name].card for name in job.plan.cards}
        if cards == job.plan.cards:
            job.go_on(await self._snapshot(stored))
            return
        _LOG.warning("the models of job %s have changed; it begins anew", job.id)
        on_canvas, retrace = job.source is not None, job.plan.retrace
        job.plan = make_plan(job.expression, job.params, cards, on_canvas=on_canvas, retrace=retrace)
        job.go_on(None)

    async def _snapshot(self, stored: JobRecord) -> Snapshot | None:
        """Where the job had come to; None to begin anew, as where that cannot be read."""
        if stored.checkpoint is None:
            return None
        try:
            return await asyncio.to_thread(read_snapshot, await self._file(stored.checkpoint.address))
        except (LostFileError, UnreadableError) as error:
            _LOG.warning("the checkpoint of job %s cannot be read, it begins anew: %s", stored.id, error)
            return None

    def _note(self, error: StoreError) -> None:
        """Remember why nothing can be written, until a probe can."""
        if self._trouble is None:
            _LOG.error("jobs cannot be written down: %s", error)
        self._trouble = error

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shown(record: Record, filters: Filters) -> bool:
    """Whether a job in memory passes the filters."""
    job = record.job
    kind = "density" if job.plan.retrace else "superposition"
    state = "running" if job.phase == "decoding" else str(job.phase)
    label = record.rendering.label
    return filters.kind in {None, kind} and filters.state in {None, state} and filters.label in {None, label}
