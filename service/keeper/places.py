"""What bounds the jobs that wait in the store where no worker is in this process."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from service.engine.job import Job
from service.engine.scheduler import Limits, QueueFullError, Taken, check_room
from service.store.port import Store

_UNMEASURED_S: Final = 5.0
_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 600.0


def unmeasured() -> float | None:
    """The rate of workers of which nothing is known."""
    return None


@dataclass(frozen=True, slots=True)
class Places:
    """How many jobs may wait, for all processes of the service together.

    Attributes:
        limits: Those of one process's queue; here they hold for the store's.
        rate: Network rows a second of all workers together, as far as they have told; None for not known.
    """

    limits: Limits = field(default_factory=Limits)
    rate: Callable[[], float | None] = unmeasured

    async def check(self, job: Job, store: Store) -> None:
        """Refuse a job for which there is no place, and say when to come again.

        Jobs that come at the same moment through several processes may pass a bound by as many.

        Raises:
            QueueFullError: A bound would be passed.
        """
        backlog = await store.backlog(job.caller)
        taken = Taken(backlog.waiting_jobs, backlog.waiting_rows, backlog.waiting_bytes, backlog.caller_jobs)
        try:
            check_room(job.rows, job.weight, taken, self.limits.room(job.ask.caller_jobs))
        except QueueFullError as error:
            error.retry_after_s = _pause(backlog.waiting_work, backlog.waiting_jobs, self.rate())
            raise


def _pause(work: int, waiting: int, rate: float | None) -> float:
    """Seconds until about one job of those that wait is begun; a random part keeps clients apart."""
    if rate is None or not waiting:
        return _UNMEASURED_S * random.uniform(1, 2)
    return min(_LONGEST_S, max(_SHORTEST_S, work / waiting / rate)) * random.uniform(1, 2)
