"""Which jobs run: plain Python, so that its rules can be tested without a network."""

from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Runnable(Protocol):
    """What the scheduler knows of a job."""

    @property
    def rows(self) -> int:
        """Network rows at every step."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether it is to be dropped."""
        ...


J = TypeVar("J", bound=Runnable)


class QueueFullError(Exception):
    """The queue has no place left."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} jobs are waiting already")
        self.waiting = waiting


class Scheduler(Generic[J]):
    """First come, first served, as many at once as the row budget allows. Not thread-safe: the engine holds its lock.

    Args:
        max_waiting: How many jobs may wait.
        max_rows: How many rows may run at once. A job larger than that runs alone.
    """

    def __init__(self, max_waiting: int, max_rows: int) -> None:
        self._max_waiting, self._max_rows = max_waiting, max_rows
        self._waiting: deque[J] = deque()
        self._running: list[J] = []

    @property
    def waiting(self) -> Sequence[J]:
        """The jobs in the queue, next first."""
        return self._waiting

    @property
    def running(self) -> Sequence[J]:
        """The jobs that take steps."""
        return self._running

    def submit(self, job: J) -> None:
        """Queue a job; :class:`QueueFullError` where there is no place."""
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(len(self._waiting))
        self._waiting.append(job)

    def admit(self) -> list[J]:
        """Move the jobs that now fit from the queue to the running set, and return them.

        Strictly in order: a small job never overtakes a large one, or the large one might wait for ever.
        """
        admitted = []
        used = sum(job.rows for job in self._running)
        while self._waiting and (not self._running or used + self._waiting[0].rows <= self._max_rows):
            job = self._waiting.popleft()
            used += job.rows
            self._running.append(job)
            admitted.append(job)
        return admitted

    def drop_cancelled(self) -> list[J]:
        """Take cancelled jobs out of the queue and the running set, and return them."""
        dropped = [job for job in (*self._waiting, *self._running) if job.cancelled]
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        self._running = [job for job in self._running if not job.cancelled]
        return dropped

    def retire(self, job: J) -> None:
        """Take a job out of the running set."""
        self._running.remove(job)

    def clear(self) -> list[J]:
        """Empty the queue and the running set, and return what they held."""
        held = [*self._waiting, *self._running]
        self._waiting.clear()
        self._running.clear()
        return held
