"""The engine's thread: admit, advance, finish; again."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from pipelines.composition import Expression
from pipelines.sampler import SamplingParams, lay_out
from service.engine.executor import Executor
from service.engine.job import Job
from service.engine.scheduler import Scheduler

_LOG: Final = logging.getLogger(__name__)


class EngineStoppedError(Exception):
    """The engine takes no more jobs, or ended before this one was done."""


class CancelledJobError(Exception):
    """The job was cancelled."""


class Engine:
    """One device thread, fed from any thread.

    Args:
        executor: What it runs.
        max_waiting: How many jobs may wait.
        max_rows: How many network rows may run at once.
    """

    def __init__(self, executor: Executor, *, max_waiting: int = 256, max_rows: int = 96) -> None:
        self._executor = executor
        self._scheduler: Scheduler[Job] = Scheduler(max_waiting, max_rows)
        self._wake = threading.Condition()
        self._open = False
        self._abandon = False
        self._thread = threading.Thread(target=self._run, name="superdiff-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._open = True
        self._thread.start()

    def stop(self, grace_s: float = 0.0) -> None:
        """Take no more jobs, give those that run ``grace_s`` seconds, end the rest, and join the thread."""
        with self._wake:
            self._open = False
            self._wake.notify_all()
        self._thread.join(grace_s)
        if self._thread.is_alive():
            self._abandon = True
            with self._wake:
                self._wake.notify_all()
            self._thread.join()

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
    def load(self) -> tuple[int, int]:
        """Jobs that wait, jobs that run."""
        with self._wake:
            return len(self._scheduler.waiting), len(self._scheduler.running)

    def submit(self, expression: Expression, params: SamplingParams, *, keep_trajectory: bool = False) -> Job:
        """Queue a request that :func:`pipelines.sampler.check` has passed.

        Returns:
            The job; its ``result`` resolves to an :class:`Outcome`.

        Raises:
            QueueFullError: There is no place.
            EngineStoppedError: The engine is stopping.
        """
        layout, _ = lay_out(expression, params)
        job = Job(expression, params, rows=len(layout.rows) * params.num_images, keep_trajectory=keep_trajectory)
        with self._wake:
            if not self._open:
                raise EngineStoppedError("the service is shutting down")
            self._scheduler.submit(job)
            self._wake.notify_all()
        return job

    def _run(self) -> None:
        while self._tick():
            pass
        with self._wake:
            self._open = False
            left = self._scheduler.clear()
        for job in left:
            job.fail(EngineStoppedError("the service shut down before this job was done"))

    def _tick(self) -> bool:
        """One round; False when the thread is to end."""
        with self._wake:
            scheduler = self._scheduler
            while not (scheduler.waiting or scheduler.running) and self._open:
                self._wake.wait()
            if self._abandon or not (self._open or scheduler.running):
                return False
            dropped = scheduler.drop_cancelled()
            admitted = scheduler.admit() if self._open else []
            running = list(scheduler.running)
        for job in dropped:
            job.fail(CancelledJobError("the job was cancelled"))
        failed = {job for job in admitted if not self._guarded(self._executor.start, job)}
        running = [job for job in running if job not in failed]
        if running:
            self._advance(running)
        with self._wake:
            over = [job for job in running if job.stepped or job.result.done()]
            for job in (*failed, *over):
                scheduler.retire(job)
        for job in over:
            if not job.result.done():
                self._guarded(lambda job: job.succeed(self._executor.complete(job)), job)
        return True

    def _advance(self, jobs: list[Job]) -> None:
        """Step all jobs together; where that fails, each alone, so that only the one at fault is lost."""
        if len(jobs) == 1:
            self._guarded(lambda job: self._executor.advance([job]), jobs[0])
            return
        indices = [job.index for job in jobs]
        try:
            self._executor.advance(jobs)
        except Exception:
            _LOG.exception("a step of %d jobs failed; each goes on alone", len(jobs))
            for job, index in zip(jobs, indices, strict=True):
                if job.index == index:
                    self._advance([job])

    def _guarded(self, act: Callable[[Job], None], job: Job) -> bool:
        """Do something for one job; an exception ends that job alone. Whether it went well."""
        try:
            act(job)
        except Exception as error:
            _LOG.exception("job %s failed", job.id)
            job.fail(error)
            return False
        return True
