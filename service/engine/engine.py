"""The engine's thread: admit, advance, decode; again."""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from pipelines.catalog import Catalog
from pipelines.memory import give_back_memory
from pipelines.plan import Plan
from service.engine.deadlines import Deadlines, late
from service.engine.executor import Executor
from service.engine.job import (
    Ask,
    CancelledJobError,
    DeadlineError,
    EngineStoppedError,
    Job,
    Outcome,
    Phase,
    Queued,
    Source,
)
from service.engine.metrics import Metrics
from service.engine.pace import connected
from service.engine.scheduler import Limits, QueueFullError, Scheduler
from service.logs import about

_LOG: Final = logging.getLogger(__name__)
_DECODE_BACKLOG: Final = 4
_GIVE_BACK_EVERY_S: Final = 1.0


class Engine:
    """One device thread, fed from any thread.

    Args:
        executor: What it runs.
        limits: The bounds of its queue and running set.
        decode_images: How many pictures are decoded between two steps, so that decoding never stalls those who step.
        checkpoint_s: Every how many seconds the snapshot of a running job goes to its saver; 0 for only when the engine
            stops before the job is done.
        metrics: Where it counts.
        stopwatch: Tells the seconds by which the device's time is shared out.
        watching: Called in the request's own context for each job that is taken in; what it returns is called when the
            engine is done with the job.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits | None = None,
        *,
        decode_images: int = 8,
        checkpoint_s: float = 0.0,
        metrics: Metrics | None = None,
        stopwatch: Callable[[], float] = time.monotonic,
        watching: Callable[[Job], Callable[[], None]] | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._executor = executor
        self._scheduler: Scheduler[Job] = Scheduler(limits or Limits())
        self._decode_images = decode_images
        self._checkpoint_s = checkpoint_s
        self._stopwatch = stopwatch
        self._watching = watching
        lock = threading.RLock()
        self._wake = threading.Condition(lock)
        self._open = False
        self._abandon = False
        # Jobs that took their last step and wait for their pictures. Their rows are free already.
        self._finished: list[Job] = []
        # Model → seconds of the device that it has had: disjoint sets of models take turns by it.
        self._served: dict[str, float] = {}
        # When freed memory was last given back, and whether nothing was done since.
        self._gave_back, self._tidy = time.monotonic(), True
        self._deadlines = Deadlines(lock, self._present)
        self._thread = threading.Thread(target=self._run, name="superdiff-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._open = True
        self._thread.start()
        self._deadlines.start()

    def drain(self) -> None:
        """Take no more jobs and turn those away that wait; those that run go on."""
        with self._wake:
            self._open = False
            turned_away = self._scheduler.clear_waiting()
            self._wake.notify_all()
        for job in turned_away:
            self._end(job, EngineStoppedError())

    def stop(self, grace_s: float = 0.0) -> None:
        """Drain, give running jobs ``grace_s`` seconds, end the rest, and join the thread."""
        self.drain()
        self._thread.join(grace_s)
        if self._thread.is_alive():
            self._abandon = True
            with self._wake:
                self._wake.notify_all()
            self._thread.join()
        self._deadlines.stop()
        self._executor.close()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop at once."""
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def accepting(self) -> bool:
        """Whether new jobs are taken."""
        return self._open

    @property
    def load(self) -> tuple[int, int]:
        """Jobs that wait, jobs that run."""
        with self._wake:
            return len(self._scheduler.waiting), len(self._scheduler.running) + len(self._finished)

    @property
    def room(self) -> tuple[int, bool]:
        """Network rows that could run besides those that wait and run here, and whether none do."""
        with self._wake:
            waiting, running = self._scheduler.waiting, self._scheduler.running
            used = sum(job.rows for job in (*waiting, *running))
            return self._scheduler.limits.running_rows - used, not (waiting or running)

    @property
    def idle(self) -> bool:
        """Whether no job waits or runs here."""
        return self.room[1]

    @property
    def fill(self) -> float:
        """Which share of the rows that may run at once is taken; at most 1."""
        rows, _ = self.room
        return min(1.0, max(0.0, 1 - rows / self._scheduler.limits.running_rows))

    @property
    def computing(self) -> frozenset[str]:
        """The models of the jobs that wait and run here."""
        with self._wake:
            jobs = (*self._scheduler.waiting, *self._scheduler.running)
            return frozenset(name for job in jobs for name in job.plan.models)

    @property
    def running_rows(self) -> int:
        """Network rows of one step of the running jobs."""
        with self._wake:
            return sum(job.rows for job in self._scheduler.running)

    @property
    def rate(self) -> float | None:
        """Network rows a second, while there is work; None before anything was measured."""
        with self._wake:
            return self._scheduler.rate

    @property
    def queued(self) -> Queued:
        """What waits here."""
        with self._wake:
            waiting = self._scheduler.waiting
        first = min((job.deadline for job in waiting), default=math.inf)
        return Queued(
            jobs=len(waiting),
            rows=sum(job.rows for job in waiting),
            work=sum(job.work for job in waiting),
            deadline=time.time() + first - time.monotonic() if math.isfinite(first) else None,
        )

    def positions(self) -> dict[str, int]:
        """For each waiting job, by its id, how many jobs will start before it."""
        with self._wake:
            order = self._scheduler.order(time.monotonic())
        return {job.id: place for place, job in enumerate(order)}

    def submit(
        self, plan: Plan, ask: Ask | None = None, source: Source | None = None, catalog: Catalog | None = None
    ) -> Job:
        """Queue a request, with its known picture if it has one, and the catalogue that it was planned for.

        Returns:
            The job; its ``result`` resolves to an :class:`Outcome`.

        Raises:
            QueueFullError: There is no place; says when to come again.
            EngineStoppedError: The engine is stopping.
        """
        return self.enqueue(Job(plan, ask or Ask(), source, catalog))

    def enqueue(self, job: Job, *, bounded: bool = True) -> Job:
        """Queue a job that was made elsewhere, as :meth:`submit` does; it keeps its id and its age.

        Args:
            job: Not yet queued.
            bounded: Whether the queue's bounds hold for it; not for one that was accepted before.
        """
        with self._wake:
            if not self._open:
                raise EngineStoppedError
            # A model that there is not is refused here, before the job has a place in the queue.
            self._executor.hold(job)
            try:
                self._scheduler.submit(job, job.ask.caller_jobs, bounded=bounded)
            except QueueFullError:
                self._executor.release(job, unload=False)
                self.metrics.refused.inc()
                raise
            # Of a job that is refused nothing is told, so nobody may wait for its end.
            if self._watching is not None:
                job.watcher = self._watching(job)
            self._tell_positions(time.monotonic())
            self._wake.notify_all()
            self._deadlines.came()
        return job

    def cancel(self, job: Job) -> None:
        """End a job that waits, and have one that runs dropped at the next tick; one that is over stays as it is."""
        job.cancel()
        with self._wake:
            waited = self._scheduler.withdraw(job)
            if waited:
                self._tell_positions(time.monotonic())
            self._wake.notify_all()
        if waited:
            # The event loop may be who cancels: it has no time to unload models.
            self._end(job, CancelledJobError("the job was cancelled"), unload=False)

    def _present(self) -> list[Job]:
        return [*self._scheduler.waiting, *self._scheduler.running, *self._finished]

    def _tell_positions(self, now: float) -> None:
        """Tell the waiting jobs' listeners where they stand; publishing never waits, so the lock may be held."""
        for place, job in enumerate(self._scheduler.order(now)):
            job.channel.publish("queued", place)

    def _run(self) -> None:
        try:
            while self._tick():
                pass
            # Those that have a saver can go on elsewhere.
            self._save([*self._scheduler.running, *self._finished])
        finally:
            with self._wake:
                self._open = False
                left = [*self._scheduler.clear_waiting(), *self._scheduler.running, *self._finished]
                self._scheduler.retire(left)
                self._finished.clear()
            for job in left:
                self._end(job, EngineStoppedError("the service shut down before this job was done"))

    def _tick(self) -> bool:
        """One round; False when the thread is to end.

        What goes wrong unforeseen costs this round's jobs, not the loop.
        """
        with self._wake:
            if not self._await_work():
                return False
            now = time.monotonic()
            dropped = self._scheduler.drop(now)
            dropped += self._drop_finished(now)
            # Decoding keeps up before more is begun, or finished latents would pile up without bound.
            backlog = sum(job.params.num_images for job in self._finished)
            held_up = backlog > _DECODE_BACKLOG * self._decode_images
            admitted = self._scheduler.admit(now) if self._open and not held_up else []
            running = list(self._scheduler.running)
            if admitted or dropped:
                self._tell_positions(now)
        began, busy, rows = self._stopwatch(), bool(running or self._finished), 0
        try:
            for job in dropped:
                told = CancelledJobError("the job was cancelled") if job.cancelled else DeadlineError(late(job))
                self._end(job, told)
            for job in admitted:
                self._guarded(self._executor.start, job)
                if not job.resumed_from:
                    self.metrics.wait_seconds.observe(job.started - job.submitted)
            rows = self._advance_next([job for job in running if not (job.decided or job.stepped)])
            self._save(job for job in running if now - job.saved >= self._checkpoint_s > 0)
            self._collect(running)
            self._decode()
        except Exception as error:
            _LOG.exception("a round of the engine failed")
            with self._wake:
                caught = [*self._scheduler.running, *self._finished]
                self._scheduler.retire(caught)
                self._finished.clear()
            for job in caught:
                self._end(job, error)
        if busy:
            with self._wake:
                self._scheduler.worked(rows, self._stopwatch() - began)
        self._observe()
        self._tidy = False
        if now - self._gave_back >= _GIVE_BACK_EVERY_S:
            give_back_memory()
            self._gave_back, self._tidy = now, True
        return True

    def _await_work(self) -> bool:
        """Wait until there is something to do; False when there will not be."""
        scheduler = self._scheduler
        while not self._abandon:
            busy = bool(scheduler.running or self._finished)
            if busy or (self._open and scheduler.waiting):
                return True
            if not self._open:
                return False
            if not self._wake.wait(None if self._tidy else _GIVE_BACK_EVERY_S):
                return True  # nothing came: a round to tidy up in
        return False

    def _drop_finished(self, now: float) -> list[Job]:
        gone = [job for job in self._finished if job.cancelled or job.deadline <= now]
        self._finished = [job for job in self._finished if job not in gone]
        return gone

    def _advance_next(self, jobs: Sequence[Job]) -> int:
        """Step the jobs of those models whose turn it is; returns their rows.

        Jobs that share models, directly or through others, step together. Sets of models with nothing in common take
        turns by the device time that they have had, so that a small model does not wait for a large one's every step.
        """
        groups = connected(jobs)
        if not groups:
            return 0
        # Only models that have work now are compared. One that comes new or comes back starts level with the others,
        # not with a claim to all the time that it was away.
        active = {model for models, _ in groups for model in models}
        self._served = {model: seconds for model, seconds in self._served.items() if model in active}
        level = min(self._served.values(), default=0.0)
        for model in active:
            self._served.setdefault(model, level)
        models, group = min(groups, key=lambda each: max(self._served[model] for model in each[0]))
        rows = sum(job.rows for job in group)
        began = self._stopwatch()
        together = self._advance(group)
        took = self._stopwatch() - began
        if together:
            with self._wake:
                self._scheduler.took(group, took)
        for model in models:
            self._served[model] += took
        self.metrics.steps.inc()
        self.metrics.batch_rows.observe(rows)
        self.metrics.step_seconds.observe(took)
        return rows

    def _advance(self, jobs: Sequence[Job]) -> bool:
        """Step all jobs together; where that fails, each alone, so that only the one at fault is lost.

        Returns:
            Whether they stepped together.
        """
        if len(jobs) == 1:
            self._guarded(lambda job: self._executor.advance([job]), jobs[0])
            return not jobs[0].decided
        indices = [job.index for job in jobs]
        try:
            self._executor.advance(jobs)
        except Exception:
            _LOG.exception("a step of %d jobs failed; each goes on alone", len(jobs))
            for job, index in zip(jobs, indices, strict=True):
                if job.index == index:
                    self._advance([job])
            return False
        return True

    def _save(self, jobs: Iterable[Job]) -> None:
        """Hand the snapshots of running jobs to their savers; a job whose snapshot fails goes on without one."""
        for job in jobs:
            if job.saver is None or job.decided or job.state is None:
                continue
            job.saved = time.monotonic()
            try:
                job.saver(self._executor.snapshot(job))
            except Exception:
                _LOG.exception("no snapshot of job %s", job.id)
            else:
                self.metrics.snapshots.inc()

    def _collect(self, jobs: Iterable[Job]) -> None:
        """Take the jobs that need no more steps out of the running set."""
        with self._wake:
            over = [job for job in jobs if job.decided or job.stepped]
            self._scheduler.retire(over)
            stepped = [job for job in over if not job.decided]
            self._finished += stepped
        for job in over:
            if job not in stepped:
                self._settle(job)
        for job in stepped:
            job.enter(Phase.DECODING)

    def _decode(self) -> None:
        """Decode some of the finished jobs: those that can be decoded with the first, up to the bound."""
        if not self._finished:
            return
        key = self._executor.decode_key(self._finished[0])
        batch: list[Job] = []
        images = 0
        for job in self._finished:
            if self._executor.decode_key(job) == key and (
                not batch or images + job.params.num_images <= self._decode_images
            ):
                batch.append(job)
                images += job.params.num_images
        began = time.monotonic()
        ends = self._decoded(batch)
        self.metrics.decode_seconds.observe(time.monotonic() - began)
        with self._wake:
            self._finished = [job for job in self._finished if job not in batch]
        for job, end in ends:
            self._end(job, CancelledJobError("the job was cancelled") if job.cancelled else end)

    def _decoded(self, batch: Sequence[Job]) -> list[tuple[Job, Outcome | Exception]]:
        """Decode jobs together; where that fails, each alone, so that only the one at fault is lost."""
        try:
            return self._executor.decode(batch)
        except Exception as error:
            if len(batch) == 1:
                with about(request=batch[0].request, job=batch[0].id):
                    _LOG.exception("job %s failed", batch[0].id)
                return [(batch[0], error)]
            _LOG.exception("decoding %d jobs failed; each is decoded alone", len(batch))
        return [end for job in batch for end in self._decoded([job])]

    def _guarded(self, act: Callable[[Job], None], job: Job) -> None:
        """Do something for one job; an exception ends that job alone."""
        with about(request=job.request, job=job.id):
            try:
                act(job)
            except Exception as error:
                _LOG.exception("job %s failed", job.id)
                self._end(job, error)

    def _end(self, job: Job, how: Outcome | Exception, *, unload: bool = True) -> None:
        """End a job, unless its end is decided, and free what it held."""
        if job.settled:
            return
        job.end(how)
        self._freed(job, unload=unload)

    def _settle(self, job: Job) -> None:
        """Free what a job held whose end was decided elsewhere, once."""
        if not job.settled:
            job.settle()
            self._freed(job, unload=True)

    def _freed(self, job: Job, *, unload: bool) -> None:
        self._executor.release(job, unload=unload)
        if job.ending is not None:
            self.metrics.jobs.labels(job.ending.value).inc()
        if job.watcher is not None:
            with contextlib.suppress(Exception):  # whoever watches must not stop the engine
                job.watcher()
            job.watcher = None

    def _observe(self) -> None:
        with self._wake:
            waiting, running = len(self._scheduler.waiting), list(self._scheduler.running)
        self.metrics.waiting.set(waiting)
        self.metrics.running.set(len(running))
        self.metrics.running_rows.set(sum(job.rows for job in running))
