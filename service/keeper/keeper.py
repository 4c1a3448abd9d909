"""The keeper: finds every job of the service, in this process's memory, in the store, or in another process.

A job that is to be kept is in the store before its client hears that it was accepted: leased to this process's own
worker where it has one (:mod:`service.keeper.worker`), else for any worker to claim. What other processes make of a job
is told here too, to whoever waits for it (:mod:`service.keeper.watcher`).
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

from service.durable.blobs import UnreadableError
from service.durable.requests import read_rendering, write_source
from service.engine.job import EngineStoppedError, Job
from service.keeper.errors import IdempotencyError, MovedError
from service.keeper.places import Places
from service.keeper.storage import Storage
from service.keeper.stored import SOURCE, record_of, stored_of
from service.keeper.watcher import WATCH_FOR_S, Watcher
from service.keeper.worker import RESTARTING, Rhythm, Worker
from service.loading import Models
from service.registry import Record, Registry
from service.store.artifacts import Artifacts
from service.store.port import DiskFullError, KeyTakenError, Store, StoreError, StoreUnavailableError, UnknownJobError
from service.store.records import Ending, Filters, Idempotency, JobRecord, JobState, Lease, cursor_of, place_of
from service.store.retention import Retention, sweep
from service.tasks import Tasks

_LOG: Final = logging.getLogger(__name__)
_TASKS_AT_ONCE: Final = 1000
_DISOWNED_WITHIN_S: Final = 5.0


class Keeper:
    """Keeps jobs, and finds them again; for one event loop.

    Args:
        registry: The jobs of this process.
        worker: Has the jobs that are accepted here computed in this process; None to leave them to other processes.
        places: What bounds the jobs that wait, where there is no worker.
        rhythm: How often things are looked after.
    """

    def __init__(
        self,
        registry: Registry,
        worker: Worker | None,
        places: Places | None = None,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._registry, self._worker = registry, worker
        self._places = places or Places()
        self._watcher = Watcher(rhythm or Rhythm())
        self._opened: Storage | None = None
        self._tasks = Tasks()
        self._stopping = False

    async def start(self, store: Store, artifacts: Artifacts, models: Models) -> None:
        """Begin.

        Args:
            store: Where jobs are kept.
            artifacts: Where their files are.
            models: Loads models.
        """
        self._opened = Storage(store, artifacts)
        self._watcher.start(self._opened)
        if self._worker is not None:
            self._worker.start(self._opened, models)

    def drain(self) -> None:
        """Take no more jobs in; those that there are go on."""
        self._stopping = True

    async def part(self, within_s: float, *, waiting: bool) -> None:
        """Answer whoever waits for a job that others compute: with its end if that is in time, else that it goes on.

        A job that ends with its request is cancelled where it does not.

        Args:
            within_s: For how long ends are waited for.
            waiting: Whether that is for jobs too that no worker has begun.
        """
        if self._opened is None:
            return
        left = await self._watcher.part(within_s, waiting=waiting)
        disowned = [asyncio.create_task(self._disown(record.job.id)) for record in left if not record.durable]
        if disowned:
            await asyncio.wait(disowned, timeout=_DISOWNED_WITHIN_S)
        for task in disowned:
            task.cancel()

    async def stop(self) -> None:
        """Write what is left to write, within some seconds, and close the store; the engine has stopped."""
        if self._opened is None:
            return
        self._stopping = True
        if self._worker is not None:
            await self._worker.stop()
        await self._watcher.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        store, self._opened = self._opened.store, None
        await store.close()

    @property
    def storage(self) -> Storage:
        """Where jobs are kept; :class:`EngineStoppedError` before the start and after the end."""
        if self._opened is None:
            raise EngineStoppedError
        return self._opened

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now; None where it can."""
        trouble = None if self._opened is None else self._opened.trouble
        return None if trouble is None else str(trouble)

    async def accept(
        self,
        record: Record,
        idempotency: Idempotency | None = None,
        callback_url: str | None = None,
        *,
        followed: bool = False,
    ) -> Record:
        """Take a job in for good: it is in the store when this returns. A key that stands for it already finds it.

        Args:
            record: The job, not yet queued.
            idempotency: The client's key, if it sent one.
            callback_url: Where its end is told, if anywhere; that is owed from now on.
            followed: Whether somebody will listen to its events from the first one on.

        Raises:
            IdempotencyError: The key stands for another request.
            QueueFullError: There is no place.
            StoreUnavailableError: It cannot be kept now.
            DiskFullError: There is no space to keep it.
        """
        worker = self._worker
        self._refuse_all()
        if worker is None:
            await self._places.check(record.job, self.storage.store)
        # Here before it is in the store: who sends the same key meanwhile finds it.
        here = worker or self._watcher
        here.expect(record)
        try:
            lease = await self._add(record, idempotency, callback_url, followed=followed)
        except KeyTakenError as error:
            here.forget(record)
            return await self._standing_for(error.winner, idempotency)
        except BaseException as error:
            here.forget(record)
            self._refused(record.job, error)
            raise
        if worker is None or lease is None:
            if record.rendering.task is not None:
                # Its dialect asks for it by who sent it, not by its id.
                self._registry.add(record)
            # Whoever waits for the end alone does not hear where it stands in the queue.
            return await self._watcher.watch(record, look=followed or record.durable)
        try:
            worker.run(record, lease)
        except Exception as error:
            worker.forget(record)
            record.job.leave(error)
            await self._undo(lease)
            raise
        return record

    def _refuse_all(self) -> None:
        """Refuse whatever comes while nothing can be taken in."""
        if self._stopping or (self._worker is not None and not self._worker.accepting):
            raise EngineStoppedError
        trouble = self.storage.trouble
        if trouble is not None:
            # At once: who waits for a store that does not answer waits long, and others behind it.
            raise type(trouble)(str(trouble))

    async def _add(
        self,
        record: Record,
        idempotency: Idempotency | None,
        callback_url: str | None,
        *,
        followed: bool,
    ) -> Lease | None:
        """Put a job into the store; the lease of this process's worker, if it has one."""
        source, artifacts = record.job.source, {}
        if source is not None:
            blob = await asyncio.to_thread(write_source, source)
            artifacts[SOURCE] = await self.storage.artifacts.put(blob, durable=record.durable)
        stored = stored_of(record, idempotency, artifacts, callback_url)
        if self._worker is not None:
            return await self.storage.store.add(stored, self._worker.id)
        until = time.time() + WATCH_FOR_S if followed else None
        if until is not None:
            self._watcher.followed(record, until)
        return await self.storage.store.add(stored, watched_until=until)

    def _refused(self, job: Job, error: BaseException) -> None:
        """A job is not known to be in the store."""
        job.leave(error if isinstance(error, Exception) else MovedError(RESTARTING))
        if isinstance(error, StoreUnavailableError | DiskFullError):
            self.storage.note(error)
            self._tasks.spawn(self._disown(job.id))

    async def standing(self, caller: str, idempotency: Idempotency) -> Record | None:
        """The job that a caller's key stands for; None where it stands for none.

        Raises:
            IdempotencyError: The key stands for another request.
        """
        winner = await self.storage.store.standing(caller, idempotency.key)
        return None if winner is None else await self._standing_for(winner, idempotency)

    def unfinished(self, caller: str) -> int:
        """How many of the caller's jobs are not over in this process."""
        records = [*self._registry.of(caller), *self._watcher.records, *(self._worker.records if self._worker else ())]
        return len({r.job.id for r in records if r.job.caller == caller and not r.job.over})

    async def find(self, job_id: str, caller: str) -> Record:
        """A caller's job as it stands; :class:`UnknownJobError` where the caller has none of that id.

        A job is its caller's alone: to others it is as if there were none.
        """
        record = self._here(job_id)
        if record is None:
            stored = await self.storage.store.get(job_id)
            if stored.caller == caller:
                return await self._watcher.revived(stored)
        elif record.job.caller == caller:
            return record
        raise UnknownJobError(job_id)

    async def follow(self, job_id: str, caller: str) -> Record:
        """A job whose end is told here, whichever process it runs in; else as :meth:`find`."""
        record = await self.find(job_id, caller)
        # Another request may have begun to follow it meanwhile: its record is the one that is told.
        here = self._here(job_id)
        if here is not None or record.job.over:
            return here or record
        return await self._watcher.watch(record)

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
        page = await self.storage.store.page(filters, cursor, limit)
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

    async def tasks(self, caller: str, label: str | None) -> list[Record]:
        """The jobs that a client named itself (see :attr:`Rendering.task`), oldest first.

        Those that are not over, whichever process took them in, and those over that this process remembers.

        Args:
            caller: Whose.
            label: Of the client; None for one that has none.
        """
        if self._worker is None:
            try:
                await self._meet(caller, label)
            except StoreUnavailableError as error:
                # What is known here is told nevertheless.
                self.storage.note(error)
        found = [each for each in self._registry.of_session(caller, label) if each.rendering.task is not None]
        return sorted(found, key=lambda record: record.job.created)

    async def _meet(self, caller: str, label: str | None) -> None:
        """Follow the jobs that a client named itself and that another process took in."""
        page = await self.storage.store.page(Filters(caller, label=label, open=True), limit=_TASKS_AT_ONCE)
        for stored in page.records:
            if stored.label != label or self._registry.find(stored.id) is not None:
                continue
            # What another version wrote is none of this one's to tell.
            with contextlib.suppress(UnreadableError):
                if read_rendering(stored.request).task is not None:
                    self._registry.add(self._here(stored.id) or await self._watcher.watch(record_of(stored)))

    async def cancel(self, record: Record) -> None:
        """Have a job cancelled; it may take a moment."""
        if self._worker is not None and (not record.kept or self._worker.find(record.job.id) is not None):
            self._worker.cancel(record.job)
        else:
            await self.storage.store.request_cancel(record.job.id, time.time())

    def drop(self, job: Job) -> None:
        """Have a job cancelled that another process computes; nobody waits for that here."""
        if not job.over:
            job.cancel()
            self._tasks.spawn(self._disown(job.id))

    async def delete(self, record: Record) -> None:
        """Forget a job that is over, and what it made."""
        job_id = record.job.id
        self._registry.remove(job_id)
        if not record.kept:
            return
        stored = await self.storage.store.get(job_id)
        await self.storage.store.delete([job_id])
        for address in stored.addresses - await self.storage.store.references():
            # One that was stored again since belongs to a job that comes just now.
            await self.storage.artifacts.remove(address, stored.ended or 0.0)

    async def forget(self, retention: Retention) -> None:
        """Forget what is too old or too much."""
        await sweep(self.storage.store, self.storage.artifacts, retention, time.time())

    async def position(self, job_id: str) -> int | None:
        """How many waiting jobs come before one that no process has; None where it does not wait."""
        order = await self.storage.store.order(time.time())
        return order.index(job_id) if job_id in order else None

    @property
    def places(self) -> dict[str, int]:
        """Where the jobs of other processes that are followed here were last seen in the queue, by their id."""
        return self._watcher.places

    def _here(self, job_id: str) -> Record | None:
        found = (None if self._worker is None else self._worker.find(job_id)) or self._watcher.find(job_id)
        remembered = self._registry.find(job_id)
        # What becomes of a kept job once it is over, the store knows.
        return found or (None if remembered is None or remembered.kept else remembered)

    async def _standing_for(self, winner: JobRecord, idempotency: Idempotency | None) -> Record:
        """The job that a key stands for, if it is the same request."""
        if idempotency is not None and winner.idempotency != idempotency:
            raise IdempotencyError("this Idempotency-Key came with another request before; take a new one")
        return await self.follow(winner.id, winner.caller)

    async def _undo(self, lease: Lease) -> None:
        """The store has a job for which there is no place here: it was never accepted."""
        try:
            await self.storage.store.note_message(lease.job_id, 0, None)
            await self.storage.store.finish(lease, Ending(JobState.CANCELLED), time.time())
            await self.storage.store.delete([lease.job_id])
        except StoreError as error:
            _LOG.warning("job %s was refused, but cannot be deleted now: %s", lease.job_id, error)
            self._tasks.spawn(self._disown(lease.job_id))

    async def _disown(self, job_id: str) -> None:
        """Nobody heard that this job was accepted, but the store may have it: it shall not run."""
        store = self.storage.store

        async def disown() -> None:
            await store.note_message(job_id, 0, None)
            await store.request_cancel(job_id, time.time())

        with contextlib.suppress(UnknownJobError):
            await self.storage.persisted(disown, through_full_disk=True)


def _shown(record: Record, filters: Filters) -> bool:
    """Whether a job in memory passes the filters."""
    job = record.job
    kind = "density" if job.plan.retrace else "superposition"
    state = "running" if job.phase == "decoding" else str(job.phase)
    label = record.rendering.label
    shown = filters.kind in {None, kind} and filters.state in {None, state} and filters.label in {None, label}
    return shown and not (filters.open and job.over)
