"""The watcher: tells in this process what becomes of jobs that others compute."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Final

from service.durable.blobs import UnreadableError
from service.durable.outcomes import read_outcome
from service.durable.progress import read_progress
from service.engine.job import CancelledJobError, EngineStoppedError, Outcome, Phase
from service.keeper.errors import LostFileError, MovedError
from service.keeper.storage import Storage
from service.keeper.stored import OUTCOME, failure_of, record_of
from service.keeper.worker import MOVED, Rhythm
from service.registry import Record
from service.store.port import StoreError, StoreUnavailableError, Topic, UnknownJobError
from service.store.records import Glance, JobRecord, JobState
from service.tasks import Tasks

_LOG: Final = logging.getLogger(__name__)
# For how long workers are asked to tell of a job's progress, and how long before the end they are asked again.
WATCH_FOR_S: Final = 20.0
_AGAIN_S: Final = 10.0
_PART_EVERY_S: Final = 0.05


class Watcher:
    """Follows jobs of other processes, all of them by one look at the store; for one event loop.

    Args:
        rhythm: How often it looks where no bell rings.
    """

    def __init__(self, rhythm: Rhythm) -> None:
        self._rhythm = rhythm
        self._watched: dict[str, Record] = {}
        # Jobs that are on their way into the store, and those of them of which a look may have passed over the news.
        self._expected: dict[str, Record] = {}
        self._overlooked: set[str] = set()
        # Job → until when its worker tells of its progress, and the newest event that was told here.
        self._asked: dict[str, float] = {}
        self._heard: dict[str, int] = {}
        # When places in the queue were last asked for, on the monotonic clock.
        self._placed = -math.inf
        self._looking = asyncio.Lock()
        self._opened: Storage | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._endings = Tasks()
        self._stopping = False

    def start(self, storage: Storage) -> None:
        """Begin."""
        self._opened = storage
        self._loops.append(asyncio.create_task(self._listen()))

    async def stop(self) -> None:
        """Let go of whoever waits."""
        if self._opened is None:
            return
        self._stopping = True
        # Nothing is cut off in a transaction.
        await self._storage.store.wake(Topic.NEWS)
        await asyncio.gather(*self._loops, *self._endings, return_exceptions=True)
        for record in list(self._watched.values()):
            self._drop(record)
        self._opened = None

    async def part(self, within_s: float, *, waiting: bool) -> list[Record]:
        """Let go of all jobs, and of those that end with their requests only once they are over, if that is in time.

        Args:
            within_s: For so long.
            waiting: Whether that is for those too that no worker has begun.

        Returns:
            Those that were not over. The ends of the others are told soon.
        """

        def hoped_for(record: Record) -> bool:
            begun = record.job.phase is not Phase.QUEUED
            return not (record.job.decided or record.durable) and (begun or waiting)

        end = time.monotonic() + within_s
        with contextlib.suppress(StoreUnavailableError):
            await self._look()
        while time.monotonic() < end and any(map(hoped_for, self._watched.values())):
            await asyncio.sleep(_PART_EVERY_S)
        left = [record for record in self._watched.values() if not record.job.decided]
        for record in left:
            self._drop(record, MovedError(MOVED) if record.durable else EngineStoppedError())
        return left

    @property
    def records(self) -> list[Record]:
        """The jobs that it follows."""
        return [*self._expected.values(), *self._watched.values()]

    def find(self, job_id: str) -> Record | None:
        """A job that it follows; None where it follows none of that id."""
        return self._watched.get(job_id) or self._expected.get(job_id)

    def expect(self, record: Record) -> None:
        """A job is about to be in the store; it is found here from now on."""
        self._expected[record.job.id] = record

    def followed(self, record: Record, until: float) -> None:
        """A worker was asked to tell of a job until a time already."""
        self._asked[record.job.id] = until

    def forget(self, record: Record) -> None:
        """It is not, after all."""
        self._arrived(record.job.id)

    @property
    def places(self) -> dict[str, int]:
        """Where the jobs that wait were last seen in the queue, by their id."""
        return {
            job_id: event.payload
            for job_id, record in self._watched.items()
            if record.job.phase is Phase.QUEUED
            for event in record.job.channel.newer(0)
            if isinstance(event.payload, int)
        }

    async def watch(self, record: Record, *, look: bool = True) -> Record:
        """Follow a job that the store has until its end; the one that is followed, where it is followed already.

        Args:
            record: The job.
            look: Whether to see how it stands at once, even if there is no news.
        """
        job_id = record.job.id
        known = self._watched.setdefault(job_id, record)
        if (self._arrived(job_id) or look) and known is record:
            with contextlib.suppress(StoreUnavailableError):
                await self._look()
        return known

    def _arrived(self, job_id: str) -> bool:
        """Whether there may have been news of an expected job while it was."""
        self._expected.pop(job_id, None)
        overlooked = job_id in self._overlooked
        self._overlooked.discard(job_id)
        return overlooked

    async def revived(self, stored: JobRecord) -> Record:
        """A job of the store as one of this process, with its end if it is over."""
        record = record_of(stored)
        if stored.state.over:
            record.job.conclude(await self._ended(stored))
        return record

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            raise EngineStoppedError
        return self._opened

    async def _listen(self) -> None:
        async with self._storage.store.listen(Topic.NEWS) as bell:
            while not self._stopping:
                try:
                    await self._look()
                except StoreUnavailableError as error:
                    self._storage.note(error)
                except Exception:
                    _LOG.exception("a look at other processes' jobs failed")
                await bell.wait(self._rhythm.watch_s)

    async def _look(self) -> None:
        """Ask the store once for all jobs that are followed, and tell what is new."""
        self._overlooked.update(self._expected)
        async with self._looking:
            if not self._watched:
                return
            await self._ask()
            # Those that come while the store answers are looked at next time.
            looked_at = dict(self._watched)
            glances = await self._storage.store.glance(list(looked_at))
            await self._tell_places(glances)
            for job_id, record in looked_at.items():
                glance = glances.get(job_id)
                if record.job.decided:
                    continue
                if glance is None:
                    record.job.conclude(CancelledJobError("the job was deleted"))
                    self._drop(record)
                    continue
                self._tell(record, glance)
                if glance.state.over:
                    # Its files may be large: others do not wait for them.
                    record.job.decided = True
                    self._endings.spawn(self._conclude(record))

    async def _ask(self) -> None:
        """Ask workers to tell of the jobs to whose progress somebody listens here."""
        now = time.time()
        wanted = [
            job_id
            for job_id, record in self._watched.items()
            if record.job.channel.watched and self._asked.get(job_id, now) < now + _AGAIN_S
        ]
        if wanted:
            await self._storage.store.watch(wanted, now + WATCH_FOR_S)
            self._asked.update(dict.fromkeys(wanted, now + WATCH_FOR_S))

    async def _tell_places(self, glances: Mapping[str, Glance]) -> None:
        """Tell where in the queue the jobs are that wait and are listened to, or of which nothing was told yet."""
        queued = {
            record.job
            for job_id, record in self._watched.items()
            if job_id in glances and glances[job_id].state is JobState.QUEUED
        }
        untold = {
            record.job
            for record in self._watched.values()
            if not record.job.channel.newer(0) and (record.job in queued or record.job.channel.watched)
        }
        now = time.monotonic()
        # The queue may be long, and news come often.
        if not (untold or (queued and now >= self._placed + self._rhythm.watch_s)):
            return
        self._placed = now
        order = await self._storage.store.order(time.time())
        # Those that a worker has taken, but not begun, come before those that none has.
        taken = sorted((job for job in queued if job.id not in order), key=lambda job: job.created)
        places = {job_id: place for place, job_id in enumerate([*(job.id for job in taken), *order])}
        for job in untold | queued:
            place = places.get(job.id, 0)
            if place not in [event.payload for event in job.channel.newer(0) if event.kind == "queued"]:
                job.channel.publish("queued", place)

    def _tell(self, record: Record, glance: Glance) -> None:
        """Tell what a worker told of a job."""
        job, progress = record.job, glance.progress
        if glance.state is JobState.RUNNING and job.phase is Phase.QUEUED:
            job.started = time.monotonic()
            job.enter(Phase.RUNNING)
        elif glance.state is JobState.QUEUED:
            job.enter(Phase.QUEUED)
        job.attempt = max(1, glance.attempts)
        job.steps_taken = glance.step
        heard = self._heard.get(job.id, 0)
        if progress is None or progress.number <= heard:
            return
        self._heard[job.id] = progress.number
        try:
            events = read_progress(progress.told)
        except UnreadableError as error:
            _LOG.warning("the progress of job %s cannot be read: %s", job.id, error)
            return
        for number, kind, payload in events:
            if number > heard:
                job.channel.publish(kind, payload, number=number)
                job.steps_taken = max(job.steps_taken, payload.step)

    async def _conclude(self, record: Record) -> None:
        """Tell the end of a job."""
        job = record.job
        try:
            stored = await self._storage.persisted(lambda: self._storage.store.get(job.id), through_full_disk=True)
            job.steps_taken, job.attempt = stored.step, max(1, stored.attempts)
            job.conclude(await self._ended(stored))
        except UnknownJobError:
            job.conclude(CancelledJobError("the job was deleted"))
        except (StoreError, EngineStoppedError) as error:
            job.conclude(error)
        except Exception as error:
            _LOG.exception("the end of job %s cannot be told", job.id)
            job.conclude(error)
        finally:
            self._drop(record)

    async def _ended(self, stored: JobRecord) -> Outcome | Exception:
        """How a job of the store that is over ended."""
        if stored.state is not JobState.COMPLETED:
            return failure_of(stored)
        try:
            return await asyncio.to_thread(read_outcome, await self._storage.file(stored.artifacts[OUTCOME]))
        except (LostFileError, UnreadableError) as error:
            _LOG.error("what job %s made cannot be read: %s", stored.id, error)
            return LostFileError("the files of this job are lost; it was completed")

    def _drop(self, record: Record, why: Exception | None = None) -> None:
        """Follow a job no more; who waits for it hears why, or that it goes on elsewhere."""
        job = record.job
        for each in (self._watched, self._asked, self._heard):
            each.pop(job.id, None)
        job.settle()
        if not job.result.done():
            job.leave(why or MovedError(MOVED))
