"""The worker: what has jobs computed here and writes down under their leases what becomes of them.

From the moment a job is leased to this process, what becomes of it is written under the lease's fence: that it runs,
its checkpoints, its end. Its end is told only once it is written. A heartbeat renews the leases; whoever loses one
drops the job and writes nothing. Jobs that nobody has (they wait, or their process died or gave them back) are taken up
while the engine has room.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pipelines.plan import make_plan
from service.durable.blobs import UnreadableError
from service.durable.outcomes import write_outcome
from service.durable.progress import write_progress
from service.durable.requests import read_source
from service.durable.snapshots import read_snapshot, write_snapshot
from service.engine.engine import Engine
from service.engine.job import CancelledJobError, EngineStoppedError, Job, Outcome, Snapshot
from service.faults import fault_of
from service.keeper.errors import LostFileError, MovedError
from service.keeper.kept import Kept
from service.keeper.storage import Storage
from service.keeper.stored import OUTCOME, SOURCE, record_of
from service.loading import Models
from service.registry import Record
from service.store.port import Bell, DiskFullError, LostLeaseError, StoreUnavailableError, Topic
from service.store.records import Checkpoint, Claim, Ending, Failure, JobRecord, JobState, Lease, Progress, Wants
from service.tasks import Tasks, happens

_LOG: Final = logging.getLogger(__name__)
_CLAIMED_AT_ONCE: Final = 8
_LAST_WRITES_S: Final = 10.0
# Why who waits for a job here hears no end of it.
MOVED: Final = "the job goes on in another process; ask for it again"
RESTARTING: Final = "the service is shutting down; the job goes on when it is back"


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often those who share a store look after things, in seconds.

    Attributes:
        lease_s: How long a lease holds; it is renewed every third of it.
        beat_s: How often the store is told which jobs run.
        poll_s: How often the store is asked for jobs that nobody has, where no bell rang.
        watch_s: How often a job of another process is looked at for whoever waits for it.
        heed_s: How soon a bell is heeded that may mean that a running job is cancelled, or watched.
        tell_s: How often those who watch from other processes are told how far a job is.
        patience_s: How long a job waits before a worker takes it up that has to load its models first, or computes with
            others.
        courtesy_s: How long a worker whose rows are all taken would wait before a claim; less the emptier it is.
    """

    lease_s: float = 30.0
    beat_s: float = 1.0
    poll_s: float = 2.0
    watch_s: float = 1.0
    heed_s: float = 0.2
    tell_s: float = 0.1
    patience_s: float = 2.0
    courtesy_s: float = 0.5


class Worker:
    """Has an engine compute jobs of a store; for one event loop.

    Args:
        engine: What runs them.
        rhythm: How often things are looked after.

    Attributes:
        id: Unlike that of any other worker.
        alone: Whether no other worker is known to claim jobs of the same store.
    """

    def __init__(self, engine: Engine, rhythm: Rhythm | None = None) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.alone = True
        self._engine = engine
        self._rhythm = rhythm or Rhythm()
        self._kept: dict[str, Kept] = {}
        self._tasks = Tasks()
        self._loops: list[asyncio.Task[None]] = []
        self._opened: Storage | None = None
        self._bell: Bell | None = None
        self._stopping = False

    def start(self, storage: Storage, models: Models) -> None:
        """Begin.

        Args:
            storage: Where jobs are kept.
            models: Loads models.
        """
        self._opened, self._models = storage, models
        for loop in (self._beat(), self._tell(), self._take_up(models.ready)):
            self._loops.append(asyncio.create_task(loop))

    async def stop(self) -> None:
        """Write what is left to write, within some seconds; the engine has stopped."""
        if self._opened is None:
            return
        # Nothing is cut off in a transaction: what waits for a bell hears one, and sees that it is the last.
        self._stopping = True
        await self._storage.store.wake()
        tasks = {*self._loops, *self._tasks}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_LAST_WRITES_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._opened = None

    @property
    def accepting(self) -> bool:
        """Whether new jobs are taken."""
        return self._engine.accepting

    @property
    def records(self) -> list[Record]:
        """The jobs that it has."""
        return [kept.record for kept in self._kept.values()]

    def find(self, job_id: str) -> Record | None:
        """A job that it has; None where it has none of that id."""
        kept = self._kept.get(job_id)
        return None if kept is None else kept.record

    def cancel(self, job: Job) -> None:
        """Have one of its jobs cancelled."""
        self._engine.cancel(job)

    def expect(self, record: Record) -> None:
        """A job is about to be leased to this worker; it is found here from now on."""
        self._kept[record.job.id] = Kept(record)

    def forget(self, record: Record) -> None:
        """It is not, after all."""
        self._kept.pop(record.job.id, None)

    def run(self, record: Record, lease: Lease) -> None:
        """Compute a job that was expected and has just been leased; whatever hinders that is raised.

        Raises:
            QueueFullError: There is no place.
            EngineStoppedError: The engine is stopping.
        """
        kept = self._kept[record.job.id]
        kept.lease = lease
        self._engine.enqueue(record.job)
        self._tasks.spawn(self._write(kept))

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            raise EngineStoppedError
        return self._opened

    async def _write(self, kept: Kept) -> None:
        """Write down what the engine tells of a job, until its end."""
        job = kept.job
        try:
            while kept.how is None:
                await kept.stirred.wait()
                kept.stirred.clear()
                await self._checkpoint(kept)
            if kept.lost:
                self._drop(kept, MovedError(MOVED))
            elif isinstance(kept.how, EngineStoppedError):
                await self._storage.persisted(lambda: self._storage.store.release(kept.lease, time.time()))
                self._drop(kept, MovedError(RESTARTING))
            else:
                await self._end(kept, kept.how)
        except LostLeaseError:
            self._engine.cancel(job)
            self._drop(kept, MovedError(MOVED))
        except asyncio.CancelledError:
            # The service ends before this could be written: the lease runs out, and the job is taken up again.
            self._drop(kept, MovedError(RESTARTING))
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
            blob = await asyncio.to_thread(write_snapshot, snapshot)
            address = await self._storage.artifacts.put(blob, durable=kept.record.durable)
            await self._storage.store.checkpoint(kept.lease, Checkpoint(address, snapshot.index))
        except (StoreUnavailableError, DiskFullError) as error:
            self._storage.note(error)

    async def _end(self, kept: Kept, how: Outcome | Exception) -> None:
        """Write the end of a job, then tell it."""
        with contextlib.suppress(StoreUnavailableError, DiskFullError):
            await self._tell_of([kept])
        try:
            ending = await self._ending(kept, how)
            await self._storage.persisted(lambda: self._storage.store.finish(kept.lease, ending, time.time()))
        except DiskFullError as error:
            _LOG.error("job %s failed: %s", kept.job.id, error)
            self._storage.note(error)
            how = error
            kept.job.conclude(how)
            failed = await self._ending(kept, how)
            await self._storage.persisted(
                lambda: self._storage.store.finish(kept.lease, failed, time.time()), through_full_disk=True
            )
        self._kept.pop(kept.job.id, None)
        kept.job.conclude(how)
        if self._bell is not None:
            # Its rows are free.
            self._bell.ring()

    async def _ending(self, kept: Kept, how: Outcome | Exception) -> Ending:
        job = kept.job
        if isinstance(how, CancelledJobError):
            return Ending(JobState.CANCELLED, step=job.index)
        if isinstance(how, Exception):
            fault = fault_of(how, reference=f"job id {job.id}")
            return Ending(JobState.FAILED, Failure(fault.detail, int(fault.status)), step=job.index)
        blob = await asyncio.to_thread(write_outcome, how)
        address = await self._storage.persisted(lambda: self._storage.artifacts.put(blob, durable=kept.record.durable))
        return Ending(JobState.COMPLETED, artifacts={OUTCOME: address}, step=job.index)

    def _drop(self, kept: Kept, why: Exception) -> None:
        """Let go of a job that goes on elsewhere."""
        self._kept.pop(kept.job.id, None)
        if not kept.job.result.done():
            kept.job.leave(why)

    async def _beat(self) -> None:
        """Tell the store which jobs run and how far they are, and keep the leases."""
        renewed, heard = time.monotonic(), False
        async with self._storage.store.listen(Topic.WORK) as bell:
            while not self._stopping:
                heard |= await bell.wait(self._rhythm.beat_s)
                since = time.monotonic() - renewed
                try:
                    await self._tell_started()
                    # A bell may mean that a job here was asked to be cancelled, or is watched.
                    if since >= (self._rhythm.heed_s if heard else self._rhythm.lease_s / 3):
                        renewed, heard = time.monotonic(), False
                        await self._renew()
                    if self._storage.trouble is not None:
                        await self._storage.probe()
                except (StoreUnavailableError, DiskFullError) as error:
                    self._storage.note(error)
                except Exception:
                    _LOG.exception("a heartbeat failed")

    async def _tell(self) -> None:
        """Tell those who watch from other processes how far jobs are."""
        while not self._stopping:
            try:
                await self._tell_of([kept for kept in self._kept.values() if kept.leased])
            except (StoreUnavailableError, DiskFullError) as error:
                self._storage.note(error)
            except Exception:
                _LOG.exception("progress cannot be told")
            await asyncio.sleep(self._rhythm.tell_s)

    async def _tell_of(self, told: Iterable[Kept]) -> None:
        """Tell what is new of jobs that are watched."""
        progress = []
        for kept in told:
            if not kept.job.channel.attended:
                continue
            events = [event for event in kept.job.channel.newer(0) if event.kind in {"progress", "preview"}]
            if events and events[-1].id > kept.told:
                kept.told = events[-1].id
                progress.append(Progress(kept.job.id, kept.lease.fence, kept.told, write_progress(events)))
        await self._storage.store.tell(progress)

    async def _tell_started(self) -> None:
        for kept in list(self._kept.values()):
            if kept.leased and not (kept.started or kept.lost or kept.job.settled) and kept.job.started:
                kept.started = True
                try:
                    await self._storage.store.start(kept.lease, time.time())
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
        renewal = await self._storage.store.renew([kept.lease for kept in held.values()], time.time(), steps)
        for lease in renewal.kept:
            held[lease.job_id].lease = lease
        for job_id in renewal.lost:
            # One that was written at its end meanwhile is not lost.
            if job_id in self._kept and self._kept[job_id].how is None:
                self._lose(self._kept[job_id])
        for job_id in renewal.cancel:
            self._engine.cancel(held[job_id].job)
        for job_id, kept in held.items():
            kept.job.channel.attended = job_id in renewal.watched

    def _lose(self, kept: Kept) -> None:
        """Another worker has the job: it ends here, and nothing of it is written."""
        _LOG.warning("job %s is another worker's by now", kept.job.id)
        kept.lost = True
        self._engine.cancel(kept.job)

    async def _take_up(self, ready: asyncio.Event) -> None:
        """Take up jobs that nobody has, while there is room."""
        # Loading may take longer than the service lives.
        while not (ready.is_set() or self._stopping):
            await happens(ready, self._rhythm.beat_s)
        async with self._storage.store.listen(Topic.WORK) as self._bell:
            while not self._stopping:
                try:
                    # What cannot be written down would be computed for nothing.
                    while self._storage.trouble is None and await self._claim():
                        pass
                except (StoreUnavailableError, DiskFullError) as error:
                    self._storage.note(error)
                except Exception:
                    _LOG.exception("jobs cannot be taken up")
                await self._bell.wait(self._rhythm.poll_s)

    async def _claim(self) -> bool:
        """Claim what there is room for; whether there was something.

        Among several workers, one that computes already lets emptier ones claim first, takes one job at a time, and
        leaves jobs of models that it does not compute with at the moment to others for a while: see docs/scaling.md.
        """
        if not self.alone and not self._engine.idle:
            await asyncio.sleep(self._rhythm.courtesy_s * self._engine.fill)
        rows, idle = self._engine.room
        if not self._engine.accepting or (rows <= 0 and not idle):
            return False
        catalog = self._models.catalog
        able = frozenset(name for name in catalog.names if catalog.failure(name) is None)
        loaded = frozenset(name for name in catalog.names if catalog.loaded(name) is not None)
        wants = Wants(
            jobs=_CLAIMED_AT_ONCE if self.alone else 1,
            rows=max(0, rows),
            models=able,
            idle=idle,
            warm=None if self.alone else loaded if idle else self._engine.computing,
            patience_s=self._rhythm.patience_s,
        )
        claims = await self._storage.store.claim(self.id, wants, time.time())
        taken = [each for claim in claims if (each := await self._taken(claim)) is not None]
        for kept, stored in taken:
            await self._go_on(kept, stored)
        return bool(claims)

    async def _taken(self, claim: Claim) -> tuple[Kept, JobRecord] | None:
        """A claimed job as one of this process; None where that cannot be read."""
        try:
            record = record_of(claim.record, claim.lease.fence)
        except UnreadableError as error:
            ending = Ending(JobState.FAILED, Failure(str(error), 500))
            await self._storage.store.finish(claim.lease, ending, time.time())
            return None
        kept = self._kept[record.job.id] = Kept(record, claim.lease)
        record.job.channel.attended = claim.watched
        self._tasks.spawn(self._write(kept))
        return kept, claim.record

    async def _go_on(self, kept: Kept, stored: JobRecord) -> None:
        """Queue a claimed job, from its checkpoint if it has one."""
        job = kept.job
        try:
            await self._restore(job, stored)
            self._engine.enqueue(job, bounded=False)
        except Exception as error:
            _LOG.warning("job %s cannot be taken up: %s", stored.id, error)
            job.end(error)

    async def _restore(self, job: Job, stored: JobRecord) -> None:
        """Give a job of the store its known picture, its checkpoint, and models that are what they were."""
        if SOURCE in stored.artifacts:
            job.source = await asyncio.to_thread(read_source, await self._storage.file(stored.artifacts[SOURCE]))
        job.catalog = catalog = self._models.catalog
        async with self._models.held(job.plan.models, catalog) as models:
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
            return await asyncio.to_thread(read_snapshot, await self._storage.file(stored.checkpoint.address))
        except (LostFileError, UnreadableError) as error:
            _LOG.warning("the checkpoint of job %s cannot be read, it begins anew: %s", stored.id, error)
            return None
